"""The best dispatch of one placement of few experts: whom each home names, so that no rank is above its ceiling.

What a home names decides what its tokens cost and whom they load, whatever other homes name. So the homes take one of
their own choices each, one home after the other, those with most choices first; a branch ends where the homes to come
cannot keep the ceilings even by shares (`pair_loads.py`), or cannot cost little enough even each at its best.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_layer import PairLayer
from specmoe.placement.bounds.pair_loads import add_bound_loads, holders_of, sum_over_subsets

# A home with more choices than these is not looked into.
_MOST_CHOICES = 4096


class Dispatched(NamedTuple):
    """cost: of the best dispatch found, or the limit it was to stay below; names: int64 [R, E], the ranks named, where
    `is_found`; is_complete: whether all dispatches were looked into.
    """

    cost: int
    names: NDArray[np.int64]
    is_found: bool
    is_complete: bool


class _Choices(NamedTuple):
    """names: int64 [N, E]; load: int64 [N, R]; cost: int64 [N]."""

    names: NDArray[np.int64]
    load: NDArray[np.int64]
    cost: NDArray[np.int64]


@compiled
def best_dispatch(
    layer: PairLayer, masks: NDArray[np.int64], room: NDArray[np.int64], limit: int, nodes: int
) -> Dispatched:
    """The best dispatch that costs less than `limit`, within so many nodes; masks: int64 [R]; under `cover`, where all
    cost the same, the first that is found. room: of `room_of_sets`.
    """
    R, E = layer.loads.shape
    holders = holders_of(masks, E)
    names, num = np.zeros((R, E), dtype=np.int64), np.ones(R, dtype=np.int64)
    for home in range(R):
        for expert in range(E):
            if not holders[expert] >> home & 1:
                num[home] *= bit_count(holders[expert])
    if num.max() > _MOST_CHOICES:
        return Dispatched(limit, names, False, False)
    order = np.argsort(-num, kind="mergesort")
    choices = [_choices(layer, holders, each, num[each]) for each in order]
    bound, least = _of_later_homes(layer, holders, order, choices)
    load, cost = np.zeros((R + 1, 1 << R), dtype=np.int64), np.zeros(R + 1, dtype=np.int64)
    sequence, position = np.zeros((R, num.max()), dtype=np.int64), np.zeros(R, dtype=np.int64)
    found, depth = False, 0
    sequence[0, : num[order[0]]] = _sequence(layer, choices[0], load[0], bound[1])
    while depth >= 0:
        at = position[depth]
        if at >= num[order[depth]]:
            depth -= 1
            continue
        if nodes == 0:
            return Dispatched(limit, names, found, False)
        nodes -= 1
        position[depth] += 1
        choice = sequence[depth, at]
        cost[depth + 1] = cost[depth] + choices[depth].cost[choice]
        if cost[depth + 1] + least[depth + 1] >= limit:
            continue
        if not _has_room(load[depth], choices[depth].load[choice], bound[depth + 1], room, load[depth + 1]):
            continue
        if depth + 1 < R:
            depth += 1
            position[depth] = 0
            sequence[depth, : num[order[depth]]] = _sequence(layer, choices[depth], load[depth], bound[depth + 1])
            continue
        limit, found = int(cost[R]), True
        for d in range(R):
            names[order[d]] = choices[d].names[sequence[d, position[d] - 1]]
        if layer.is_cover:
            break
    return Dispatched(limit, names, found, True)


@compiled
def _of_later_homes(
    layer: PairLayer, holders: NDArray[np.int64], order: NDArray[np.int64], choices: list[_Choices]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 [R + 1, 2 ** R] and [R + 1]: of homes `order[d:]`, what only each set of ranks may serve, and the least
    cost.
    """
    R = len(order)
    bound, least = np.zeros((R + 1, 1 << R), dtype=np.int64), np.zeros(R + 1, dtype=np.int64)
    for d in range(R - 1, -1, -1):
        add_bound_loads(layer, holders, order[d], bound[d])
        sum_over_subsets(bound[d])
        bound[d] += bound[d + 1]
        least[d] = least[d + 1] + choices[d].cost.min()
    return bound, least


@compiled
def _choices(layer: PairLayer, holders: NDArray[np.int64], home: int, num: int) -> _Choices:
    """All that one home can name, and what follows for its tokens."""
    R, E = layer.loads.shape
    choices = _Choices(
        np.zeros((num, E), dtype=np.int64), np.zeros((num, R), dtype=np.int64), np.zeros(num, dtype=np.int64)
    )
    named = np.zeros(E, dtype=np.int64)
    for expert in range(E):
        named[expert] = home if holders[expert] >> home & 1 else _next_holder(holders[expert], 0)
    for choice in range(num):
        choices.names[choice] = named
        choices.cost[choice] = _serve(layer, holders, home, named, choices.load[choice])
        for expert in range(E):
            if holders[expert] >> home & 1:
                continue
            following = _next_holder(holders[expert], named[expert] + 1)
            named[expert] = _next_holder(holders[expert], 0) if following < 0 else following
            if following >= 0:
                break
    return choices


@compiled
def _next_holder(holders: int, rank: int) -> int:
    """The first rank in a mask from `rank` on, -1 if there is none."""
    rest = holders >> rank
    if rest == 0:
        return -1
    while not rest & 1:
        rest >>= 1
        rank += 1
    return rank


@compiled
def _serve(
    layer: PairLayer, holders: NDArray[np.int64], home: int, named: NDArray[np.int64], load: NDArray[np.int64]
) -> int:
    """What one home's tokens cost when it names `named`, int64 [E]; adds to load, int64 [R]."""
    cost = 0
    for expert in range(len(named)):
        load[named[expert]] += layer.loads[home, expert]
        cost += layer.loads[home, expert] * (named[expert] != home)
    for p in range(len(layer.pair)):
        first, second = named[layer.first[p]], named[layer.second[p]]
        if first == home or second == home:
            continue
        tokens, rank = layer.tokens[home, p], first if first == second else -1
        if layer.is_cover:
            both = holders[layer.first[p]] & holders[layer.second[p]]
            rank = _cover(both, home, first, second, len(load)) if both else -1
        if rank >= 0:
            load[first] -= tokens
            load[second] -= tokens
            load[rank] += 2 * tokens
            cost -= tokens
    return cost


@compiled
def _cover(both: int, home: int, first: int, second: int, num_ranks: int) -> int:
    """Of the ranks that hold both, the one that is named for most, of equals the first after home."""
    best, best_score = -1, -1
    for away in range(1, num_ranks):
        rank = (home + away) % num_ranks
        score = int(rank == first) + int(rank == second)
        if both >> rank & 1 and score > best_score:
            best, best_score = rank, score
    return best


@compiled
def _sequence(
    layer: PairLayer, choices: _Choices, load: NDArray[np.int64], bound: NDArray[np.int64]
) -> NDArray[np.int64]:
    """int64 [N]: the choices, the cheapest first; under `cover` those that leave the fullest rank most room."""
    if not layer.is_cover:
        return np.argsort(choices.cost, kind="mergesort")
    fullest = np.full(len(choices.cost), -(1 << 60), dtype=np.int64)
    for choice in range(len(fullest)):
        for rank in range(len(layer.ceiling)):
            full = load[1 << rank] + choices.load[choice, rank] + bound[1 << rank] - layer.ceiling[rank]
            fullest[choice] = max(fullest[choice], full)
    return np.argsort(fullest, kind="mergesort")


@compiled
def _has_room(
    before: NDArray[np.int64],
    load: NDArray[np.int64],
    bound: NDArray[np.int64],
    room: NDArray[np.int64],
    after: NDArray[np.int64],
) -> bool:
    """Whether all sets of ranks have room for `before`, `load` and what is bound to them later; writes after, the first
    two together.
    """
    for rank in range(len(load)):
        bit = 1 << rank
        for mask in range(bit, 2 * bit):
            after[mask] = after[mask ^ bit] + before[bit] + load[rank]
            if after[mask] + bound[mask] > room[mask]:
                return False
    return True
