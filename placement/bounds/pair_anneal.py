"""Good placements of a layer of few experts with their dispatch: simulated annealing over the ranks' columns.

A step replaces an expert of a rank, or exchanges experts or whole columns of two. Loads count by what is above the
ceilings however pairs are shared out (`pair_loads.py`); what keeps them and costs less than all before is taken if it
has a dispatch that keeps them too.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_dispatch import best_dispatch
from specmoe.placement.bounds.pair_layer import PairLayer
from specmoe.placement.bounds.pair_loads import holders_of, least_overload, room_of_sets

# Temperatures are shares of the layer's tokens; a pair above a ceiling costs so many copies.
_HOT, _COLD = 2e-2, 5e-4
_OVERLOAD_PRICE = 3.0
_REPLACE, _EXCHANGE_COLUMNS = 0.5, 0.15
_DISPATCH_NODES = 20_000


class Annealed(NamedTuple):
    """cost: of the best found, or the limit it was to stay below; masks: int64 [R] and names: int64 [R, E], the
    placement and the ranks named, where `is_found`.
    """

    cost: int
    masks: NDArray[np.int64]
    names: NDArray[np.int64]
    is_found: bool


@compiled
def anneal_pairs(layer: PairLayer, start: NDArray[np.int64], limit: int, steps: int, seed: int) -> Annealed:
    """The best that costs less than `limit`; start: int64 [R], the mask of what each rank holds."""
    np.random.seed(seed)
    R, E = layer.loads.shape
    masks, tried = start.copy(), start.copy()
    room, bound_loads = room_of_sets(layer.ceiling), np.zeros(1 << R, dtype=np.int64)
    best, names, found = start.copy(), np.zeros((R, E), dtype=np.int64), False
    tokens = float(layer.loads.sum()) / 2.0
    now = np.inf
    for step in range(steps):
        if step > 0 and not _move(tried, E):
            continue
        holders = holders_of(tried, E)
        cost, over = np.inf, 0
        if holders.min() > 0:
            cost, over = float(least_cost(layer, tried, holders)), least_overload(layer, holders, room, bound_loads)
        heat = tokens * _HOT * (_COLD / _HOT) ** (step / steps)
        priced = cost + _OVERLOAD_PRICE * over
        if step > 0 and not (priced <= now or np.random.random() < np.exp((now - priced) / heat)):
            tried[:] = masks
            continue
        masks[:] = tried
        now = priced
        if over == 0 and cost < limit:
            dispatched = best_dispatch(layer, masks, room, limit, _DISPATCH_NODES)
            if dispatched.is_found:
                limit, found = dispatched.cost, True
                best[:] = masks
                names[:] = dispatched.names
    return Annealed(limit, best, names, found)


@compiled
def _move(masks: NDArray[np.int64], num_experts: int) -> bool:
    """Change what one rank or two hold, in place; False where what was drawn is no move."""
    i, j = np.random.randint(len(masks)), np.random.randint(len(masks))
    a, b = 1 << np.random.randint(num_experts), 1 << np.random.randint(num_experts)
    drawn = np.random.random()
    if drawn < _REPLACE:
        if not masks[i] & a or masks[i] & b:
            return False
        masks[i] ^= a | b
        return True
    if drawn < _REPLACE + _EXCHANGE_COLUMNS:
        if i == j or bit_count(masks[i]) != bit_count(masks[j]):
            return False
        masks[i], masks[j] = masks[j], masks[i]
        return True
    if not (masks[i] & ~masks[j] & a and masks[j] & ~masks[i] & b):
        return False
    masks[i] ^= a | b
    masks[j] ^= a | b
    return True


@compiled
def least_cost(layer: PairLayer, masks: NDArray[np.int64], holders: NDArray[np.int64]) -> int:
    """What a placement costs whatever the loads; masks: int64 [R]; holders: int64 [E], the ranks of each expert."""
    R, E = layer.loads.shape
    cost, everything = 0, (1 << E) - 1
    for home in range(R):
        for expert in range(E):
            if not masks[home] >> expert & 1:
                cost += layer.loads[home, expert]
        if not layer.is_cover:
            cost -= _most_saved(layer.together[home], masks, everything & ~masks[home])
    if layer.is_cover:
        for p in range(len(layer.pair)):
            if holders[layer.first[p]] & holders[layer.second[p]]:
                for home in range(R):
                    if not masks[home] & layer.pair[p]:
                        cost -= layer.tokens[home, p]
    return cost


@compiled
def _most_saved(together: NDArray[np.int64], masks: NDArray[np.int64], lacking: int) -> int:
    """The most that one home's tokens save where each rank serves one block of the experts that the home lacks."""
    most, rank, R = 0, 0, len(masks)
    free, saved = np.zeros(R + 1, dtype=np.int64), np.zeros(R + 1, dtype=np.int64)
    block = np.zeros(R, dtype=np.int64)
    free[0], block[0] = lacking, masks[0] & lacking
    while rank >= 0:
        tried = block[rank]
        if tried < 0:
            rank -= 1
            continue
        block[rank] = (tried - 1) & masks[rank] & free[rank] if tried else -1
        rest = free[rank] ^ tried
        saved[rank + 1] = saved[rank] + together[tried]
        is_single = tried > 0 and tried & (tried - 1) == 0
        if is_single or saved[rank + 1] + together[rest] <= most:
            continue
        most = max(most, saved[rank + 1])
        if rank + 1 < R:
            rank += 1
            free[rank], block[rank] = rest, masks[rank] & rest
    return most
