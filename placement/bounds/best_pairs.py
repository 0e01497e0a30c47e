"""The best placement and dispatch of a layer of few experts by its replica choice, loads included, with its proof.

Annealing finds what is mostly the best already, in a fraction of a second; branch and bound proves that nothing costs
less, or finds it. What is found keeps the cap and comes with its dispatch; what is proven holds for all plans of that
replica choice that keep the cap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.pair_anneal import anneal_pairs
from specmoe.placement.bounds.pair_layer import holds_of, masks_of, pair_layer
from specmoe.placement.bounds.pair_prices import pair_prices
from specmoe.placement.bounds.pair_search import search_pairs
from specmoe.placement.options import SolveOptions

_ANNEALINGS, _STEPS = 4, 60_000
# Operations that a node of the search takes for each column of a rank, and those of a second.
_WORK_PER_COLUMN, _WORK_PER_SECOND = 20, 1e9
# No placement costs more than one copy per pair.
_MORE_THAN_ANY = 1


@dataclass(frozen=True, kw_only=True)
class ServedChoice:
    """bound: nothing that keeps the cap costs less; infinite where nothing keeps it. holds: bool [R, E] and dispatch:
    int32 [R, E], the ranks named, of what was found to cost less than the plan; None where nothing was.
    """

    bound: float
    cost: float
    holds: NDArray[np.bool_] | None = None
    dispatch: NDArray[np.int32] | None = None


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
    if options.seconds_left is not None:
        work = min(work, int(max(0.0, options.seconds_left) * _WORK_PER_SECOND))
    nodes = work // int(_WORK_PER_COLUMN * (layer.end - layer.begin).sum())
    found = search_pairs(layer, pair_prices(layer), limit, nodes)
    if found.is_found:
        limit, masks, names = found.cost, found.masks, found.names
    is_infeasible = masks is None and not case.is_legal and found.bound >= highest
    return ServedChoice(
        bound=np.inf if is_infeasible else float(found.bound),
        cost=float(limit) if masks is not None or case.is_legal else np.inf,
        holds=None if masks is None else holds_of(masks, case.num_experts),
        dispatch=None if names is None else names.astype(np.int32),
    )
