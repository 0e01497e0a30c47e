"""The best placement and dispatch of a layer of few experts by its replica choice, loads included, with its proof.

Annealing finds what is mostly the best already, in a fraction of a second; branch and bound proves that nothing costs
less, or finds it; what it could not find or refute a dispatch for goes to CP-SAT. What is found keeps the cap and comes
with its dispatch; what is proven holds for all plans of that replica choice that keep the cap.
"""

from dataclasses import replace

import numpy as np

from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.pair_anneal import anneal_pairs
from specmoe.placement.bounds.pair_layer import holds_of, masks_of, pair_layer
from specmoe.placement.bounds.pair_search import PairFound, search_pairs
from specmoe.placement.bounds.served_choice import ServedChoice
from specmoe.placement.bounds.served_program import dispatch_served
from specmoe.placement.options import SolveOptions

_ANNEALINGS, _STEPS = 4, 60_000
# Operations of the search in a second.
_WORK_PER_SECOND = 2.5e8
# What the search counts as one are about so many of those that the work is given in.
_WORK_PER_OPERATION = 3
# The dispatch of one placement may take this part of the work.
_DISPATCH_SHARE = 20
# No placement costs more than one copy per pair.
_MORE_THAN_ANY = 1


def best_pairs(case: LayerCase, options: SolveOptions, work: int) -> ServedChoice:
    """The best of all, or as near as about `work` operations come, for a case that `can_pair`."""
    layer = pair_layer(case)
    highest = int(layer.loads.sum()) + _MORE_THAN_ANY
    limit = int(case.cost) if case.is_legal else highest
    masks, names = None, None
    start = masks_of(case.holds)
    for attempt in range(_ANNEALINGS):
        if options.is_over:
            break
        annealed = anneal_pairs(layer, start, limit, _STEPS, options.seed + attempt)
        if annealed.is_found:
            limit, masks, names = annealed.cost, annealed.masks, annealed.names
    operations = work // _WORK_PER_OPERATION
    if options.seconds_left is not None:
        operations = min(operations, int(max(0.0, options.seconds_left) * _WORK_PER_SECOND))
    found = search_pairs(layer, limit, operations)
    if found.is_found:
        limit, masks, names = found.cost, found.masks, found.names
    is_known = masks is not None or case.is_legal
    known = ServedChoice(
        bound=float(found.bound) if found.bound < highest else np.inf,
        cost=float(limit) if is_known else np.inf,
        holds=None if masks is None else holds_of(masks, case.num_experts),
        dispatch=None if names is None else names.astype(np.int32),
    )
    return settle_aside(case, known, found, options, work // _DISPATCH_SHARE)


def settle_aside(
    case: LayerCase, known: ServedChoice, found: PairFound, options: SolveOptions, work: int
) -> ServedChoice:
    """The best of the known and of what the search put aside, the cheapest of these first, with the bound on all."""
    bound = known.bound
    for index in np.argsort(found.least, kind="stable"):
        least = float(found.least[index])
        if least >= min(known.cost, bound):
            break
        holds = holds_of(found.aside[index], case.num_experts)
        settled = dispatch_served(case, holds, replace(known, bound=least), options, work)
        bound = min(bound, settled.bound)
        known = settled
    return replace(known, bound=min(bound, known.cost))
