"""The best placement and dispatch of a layer of few experts by its replica choice, loads included, with its proof.

Annealing finds what is mostly the best already, in a fraction of a second; branch and bound proves that nothing costs
less, or finds it; what it could not find or refute a dispatch for goes to CP-SAT. What is found keeps the cap and comes
with its dispatch; what is proven holds for all plans of that replica choice that keep the cap.
"""

from dataclasses import replace

import numpy as np

from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.pair_anneal import anneal_pairs
from specmoe.placement.bounds.pair_layer import PairLayer, holds_of, masks_of, pair_layer
from specmoe.placement.bounds.pair_search import PairFound, search_pairs
from specmoe.placement.bounds.served_choice import ServedChoice
from specmoe.placement.bounds.served_program import dispatch_served
from specmoe.placement.options import SolveOptions

_ANNEALINGS, _STEPS = 4, 60_000
# Operations of the search in a second, and the parts of its work after which it begins anew below what was found.
_WORK_PER_SECOND = 3e8
_TURNS = 0.2, 0.8
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
    known = ServedChoice(
        bound=-np.inf,
        cost=float(limit) if masks is not None or case.is_legal else np.inf,
        holds=None if masks is None else holds_of(masks, case.num_experts),
        dispatch=None if names is None else names.astype(np.int32),
    )
    for turn in _TURNS:
        proven = known.bound
        known = _search(case, layer, known, options, int(turn * work))
        known = replace(known, bound=max(known.bound, proven))
        if known.bound >= known.cost or options.is_over:
            break
    return known


def _search(case: LayerCase, layer: PairLayer, known: ServedChoice, options: SolveOptions, work: int) -> ServedChoice:
    """What costs less than the known, with the bound that so much work proves."""
    highest = int(layer.loads.sum()) + _MORE_THAN_ANY
    limit = int(known.cost) if np.isfinite(known.cost) else highest
    operations = work
    if options.seconds_left is not None:
        operations = min(operations, int(max(0.0, options.seconds_left) * _WORK_PER_SECOND))
    found = search_pairs(layer, limit, operations)
    if found.is_found:
        holds, dispatch = holds_of(found.masks, case.num_experts), found.names.astype(np.int32)
        known = replace(known, cost=float(found.cost), holds=holds, dispatch=dispatch)
    known = replace(known, bound=float(found.bound) if found.bound < highest else np.inf)
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
