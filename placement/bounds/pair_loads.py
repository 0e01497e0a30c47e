"""What loads a placement of few experts can have at best: how far above their ceilings ranks go if shares are free.

Every (home, expert) pair may be served by some ranks only: by the home alone where it holds the expert, by those that
hold both experts where the rule serves them together, else by all that hold it. If every pair could be shared out at
will among its ranks, ceilings could be kept exactly if for every set of ranks Q (Hall's condition)

    what only ranks in Q may serve  <=  sum over Q of ceiling.

A dispatch sends all tokens of a home the same way, so it may need more, never less.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_layer import PairLayer


@compiled
def holders_of(masks: NDArray[np.int64], num_experts: int) -> NDArray[np.int64]:
    """int64 [E]: the ranks that hold each expert, as a mask; masks: int64 [R], the experts of each rank."""
    holders = np.zeros(num_experts, dtype=np.int64)
    for rank in range(len(masks)):
        for expert in range(num_experts):
            holders[expert] |= (masks[rank] >> expert & 1) << rank
    return holders


@compiled
def add_bound_loads(layer: PairLayer, holders: NDArray[np.int64], home: int, bound: NDArray[np.int64]) -> None:
    """Add the pairs of one home to bound, int64 [2 ** R], at the sets of ranks that may serve them."""
    for expert in range(len(holders)):
        at_home = holders[expert] >> home & 1
        bound[1 << home if at_home else holders[expert]] += layer.loads[home, expert]
    if not layer.is_cover:
        return
    for p in range(len(layer.pair)):
        e, f = holders[layer.first[p]], holders[layer.second[p]]
        if e & f and not (e | f) >> home & 1:
            tokens = layer.tokens[home, p]
            bound[e] -= tokens
            bound[f] -= tokens
            bound[e & f] += 2 * tokens


@compiled
def sum_over_subsets(values: NDArray[np.int64]) -> None:
    """Each entry of [2 ** R] becomes the sum over all subsets of its mask, in place."""
    bit = 1
    while bit < len(values):
        for mask in range(len(values)):
            if mask & bit:
                values[mask] += values[mask ^ bit]
        bit *= 2


@compiled
def room_of_sets(ceiling: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [2 ** R]: the sum of the ceilings of each set of ranks."""
    room = np.zeros(1 << len(ceiling), dtype=np.int64)
    for rank in range(len(ceiling)):
        room[1 << rank] = ceiling[rank]
    sum_over_subsets(room)
    return room


@compiled
def least_overload(
    layer: PairLayer, holders: NDArray[np.int64], room: NDArray[np.int64], bound: NDArray[np.int64]
) -> int:
    """The pairs above the ceilings at best; room: of `room_of_sets`; bound: int64 [2 ** R], overwritten."""
    bound[:] = 0
    for home in range(len(layer.tokens)):
        add_bound_loads(layer, holders, home, bound)
    sum_over_subsets(bound)
    return max(0, int((bound - room).max()))
