"""The cheapest experts that one rank can hold, at given prices for experts: branch and bound.

A rank that holds the experts S, its *column*, pays the weight of every group of experts that S meets and earns
price[e] for each e in S. The search chooses experts one by one, those that look cheapest first; what is left of the
groups is `groups.py`'s, how little the rest can cost `column_score.py`'s. It ends with the cheapest column, or, when
its work is used up, with the lowest bound of the parts that it has not looked into.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.column_score import score_candidates
from specmoe.placement.bounds.groups import Groups, Weights, meet, part_from

# What rounding in a score may amount to; costs are whole numbers, prices have few binary digits: their sums are exact.
_ROUNDING = 1e-5
# Operations, about a nanosecond each, that scoring takes per candidate and per pair of them.
_WORK_PER_CANDIDATE, _WORK_PER_PAIR = 30, 3


class Room(NamedTuple):
    """What a rank holds: exactly `slots` experts, with load, float64 [E], of `lightest` to `heaviest` in all."""

    slots: int
    load: NDArray[np.float64]
    lightest: float
    heaviest: float


class Columns(NamedTuple):
    """bound: every column costs at least this, or more than the threshold; value: the cheapest found, or infinite.

    held: uint8 [M, E], the last columns found within the threshold; num_found: how many there were, above M if
    some are lost; is_complete: whether none within the threshold was missed. work: operations, about a nanosecond each.
    """

    bound: float
    value: float
    held: NDArray[np.uint8]
    num_found: int
    is_complete: bool
    work: int


class _Tree(NamedTuple):
    """One entry per depth. candidates [c + 1, E], num [c + 1]: what can still be chosen; score [c + 1, E]; position:
    the candidate being tried; end: work at which to stop; chosen; cost and load of the chosen; below: the lowest bound
    among finished branches; marginal [c + 1, E] and pair [c + 1, E * E] of the groups that are not met.
    """

    candidates: NDArray[np.int64]
    num: NDArray[np.int64]
    score: NDArray[np.float64]
    position: NDArray[np.int64]
    end: NDArray[np.int64]
    chosen: NDArray[np.int64]
    cost: NDArray[np.float64]
    load: NDArray[np.float64]
    own: NDArray[np.float64]
    below: NDArray[np.float64]
    marginal: NDArray[np.int32]
    pair: NDArray[np.int32]


@compiled
def _tree(weights: Weights, slots: int, work_limit: int) -> _Tree:
    E, depths = len(weights.single), slots + 1
    tree = _Tree(
        np.zeros((depths, E), dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros((depths, E)),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths),
        np.zeros(depths),
        np.zeros(depths),
        np.zeros(depths),
        np.zeros((depths, E), dtype=np.int32),
        np.zeros((depths, E * E), dtype=np.int32),
    )
    tree.candidates[0] = np.arange(E)
    tree.num[0] = E
    tree.end[0] = work_limit
    tree.marginal[0] = weights.single
    tree.pair[0] = weights.pair
    return tree


@compiled
def _last_choices(
    tree: _Tree, depth: int, price: NDArray[np.float64], room: Room, threshold: float, lower: bool, count: int,
    held: NDArray[np.uint8],
) -> tuple[float, int]:  # fmt: skip
    """Try all that can complete the chosen with one expert or two; the cheapest cost, and the new `count`."""
    E, n, one = held.shape[1], tree.num[depth], room.slots - depth == 1
    marginal, pair, candidates = tree.marginal[depth], tree.pair[depth], tree.candidates[depth]
    best = np.inf
    for i in range(n):
        e = candidates[i]
        cost_with = tree.cost[depth] + marginal[e] - price[e]
        load_with = tree.load[depth] + room.load[e]
        for j in range(i + 1, i + 2 if one else n):
            f = e if one else candidates[j]
            cost, load = cost_with, load_with
            if not one:
                cost += marginal[f] - price[f] - pair[e * E + f]
                load += room.load[f]
            if cost > threshold and cost >= best:
                continue
            if load > room.heaviest or load < room.lightest:
                continue
            best = min(best, cost)
            if cost > threshold:
                continue
            row = held[count % len(held)]
            row[:] = 0
            for d in range(depth):
                row[tree.chosen[d]] = 1
            row[e] = 1
            row[f] = 1
            count += 1
            if lower:
                threshold = cost
    return best, count


@compiled
def _next_branch(tree: _Tree, depth: int, room: Room, threshold: float, work: int) -> bool:
    """Move on to the next candidate that is worth trying; False, with `below` lowered, where none is."""
    left, n = room.slots - depth, tree.num[depth]
    while True:
        tree.position[depth] += 1
        i = tree.position[depth]
        if i > n - left:
            return False
        bound = tree.cost[depth] - _ROUNDING
        for j in range(left):
            bound += tree.score[depth, i + j]
        if bound > threshold or work >= tree.end[depth]:
            tree.below[depth] = min(tree.below[depth], bound)
            return False
        if tree.load[depth] + room.load[tree.candidates[depth, i]] <= room.heaviest:
            return True


@compiled
def search_columns(
    groups: Groups,
    weights: Weights,
    price: NDArray[np.float64],
    room: Room,
    threshold: float,
    lower: bool,
    work_limit: int,
    limit: int,
) -> Columns:
    """Up to `limit` columns that cost at most `threshold`, and a bound on all; price: float64 [E].

    lower: the threshold follows the cheapest column found, so only the cheapest is sought.
    """
    tree = _tree(weights, room.slots, work_limit)
    hits = np.zeros(len(weights.weight), dtype=np.int32)
    scratch = np.zeros((3, len(price) + 1))
    held = np.zeros((limit, len(price)), dtype=np.uint8)
    count, value, work, depth, is_complete, is_new = 0, np.inf, len(price) ** 2, 0, True, True
    while True:
        n = tree.num[depth]
        if is_new and room.slots - depth <= 2:
            tree.own[depth] = -np.inf
            tree.below[depth], count = _last_choices(tree, depth, price, room, threshold, lower, count, held)
            tree.position[depth] = n
            work += n * n
            value = min(value, tree.below[depth])
            if lower:
                threshold = min(threshold, value)
        elif is_new:
            tree.below[depth] = np.inf
            tree.position[depth] = -1
            tree.own[depth] = tree.cost[depth] - _ROUNDING + score_candidates(
                tree.candidates[depth, :n], room.slots - depth, groups.size, tree.marginal[depth], tree.pair[depth],
                price, tree.score[depth, :n], scratch,
            )  # fmt: skip
            work += n * (n * _WORK_PER_PAIR + _WORK_PER_CANDIDATE)
        is_new = _next_branch(tree, depth, room, threshold, work)
        if is_new:
            work += _descend(groups, weights, price, room, tree, depth, hits, work)
            depth += 1
            continue
        is_complete = is_complete and work < tree.end[depth]
        bound = max(tree.own[depth], tree.below[depth])
        if depth == 0:
            return Columns(bound, value, held, count, is_complete, work)
        depth -= 1
        tree.below[depth] = min(tree.below[depth], bound)
        part_from(groups, weights, tree.chosen[depth], hits)


@compiled
def _descend(
    groups: Groups, weights: Weights, price: NDArray[np.float64], room: Room, tree: _Tree, depth: int,
    hits: NDArray[np.int32], work: int,
) -> int:  # fmt: skip
    """Choose the candidate at `position`; those before it are out of the branch. The work done."""
    i, n = tree.position[depth], tree.num[depth]
    e = tree.candidates[depth, i]
    tree.chosen[depth] = e
    tree.cost[depth + 1] = tree.cost[depth] + tree.marginal[depth, e] - price[e]
    tree.load[depth + 1] = tree.load[depth] + room.load[e]
    tree.num[depth + 1] = n - i - 1
    tree.candidates[depth + 1, : n - i - 1] = tree.candidates[depth, i + 1 : n]
    # The branches that come first are the ones that hold the bound down: each may use half of what is left.
    tree.end[depth + 1] = work + (tree.end[depth] - work + 1) // 2
    tree.marginal[depth + 1] = tree.marginal[depth]
    tree.pair[depth + 1] = tree.pair[depth]
    return meet(groups, weights, tree.chosen[:depth], e, hits, tree.marginal[depth + 1], tree.pair[depth + 1])
