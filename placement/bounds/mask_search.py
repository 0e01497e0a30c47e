"""The cheapest experts that one rank can hold where any function of masks is what it pays: branch and bound.

As `column_search.py`, with the counts of `mask_costs.py`: experts are chosen one by one, those that look cheapest
first, and the shares of the experts still to choose bound what they cost. It ends with the bound on all columns, or,
when its work is used up, with the lowest bound of the parts that it has not looked into.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.mask_costs import Counts, count_chosen, pair_adds

# Operations, about a nanosecond each, per node, per row of counts that it adds, and per pair that is tried.
_WORK_PER_NODE, _WORK_PER_ROW, _WORK_PER_PAIR = 90, 3, 15


class Cheapest(NamedTuple):
    """bound: every column costs at least this, or more than the threshold; column: uint8 [E], the last one found within
    the threshold, if `is_found`; is_complete: whether the search came to its end; work: operations.
    """

    bound: float
    column: NDArray[np.uint8]
    is_found: bool
    is_complete: bool
    work: int


class _Tree(NamedTuple):
    """One entry per depth. candidates [c + 1, E], num [c + 1]: what can still be chosen, cheapest first; score [c + 1,
    E]; position: the candidate being tried; end: work at which to stop; chosen; cost of the chosen; below: the lowest
    bound among finished branches; adds, share: int32 [c + 1, E], what experts add now, and at least.
    """

    candidates: NDArray[np.int64]
    num: NDArray[np.int64]
    score: NDArray[np.float64]
    position: NDArray[np.int64]
    end: NDArray[np.int64]
    chosen: NDArray[np.int64]
    cost: NDArray[np.float64]
    below: NDArray[np.float64]
    adds: NDArray[np.int32]
    share: NDArray[np.int32]


@compiled
def cheapest_column(
    exact: Counts, share: Counts, price: NDArray[np.float64], slots: int, threshold: float, work_limit: int
) -> Cheapest:
    """What any `slots` experts cost at least, less their prices, whole numbers [E]; constants are left out.

    threshold: only columns below it are sought; it follows the cheapest one found.
    """
    E = len(price)
    tree = _tree(exact, share, slots, work_limit)
    found, column = False, np.zeros(E, dtype=np.uint8)
    work, depth, is_complete, is_new = E, 0, True, True
    while True:
        if is_new:
            own = tree.cost[depth] + _score(tree, depth, price, slots - depth)
            tree.below[depth] = np.inf
            tree.position[depth] = -1
            work += _WORK_PER_NODE + (2 + depth * (depth + 1)) * _WORK_PER_ROW
            if own >= threshold:
                tree.below[depth] = own
                tree.position[depth] = tree.num[depth]
            elif slots - depth <= 2:
                least, tried = _last_choices(exact, tree, depth, price, slots, threshold, column)
                tree.below[depth] = least
                tree.position[depth] = tree.num[depth]
                work += tried * _WORK_PER_PAIR
                if least < threshold:
                    threshold, found = least, True
        is_new = _next_branch(tree, depth, slots, threshold, work)
        if is_new:
            _descend(exact, share, tree, depth, price, work)
            depth += 1
            continue
        is_complete = is_complete and work < tree.end[depth]
        if depth == 0:
            return Cheapest(tree.below[0], column, found, is_complete, work)
        depth -= 1
        tree.below[depth] = min(tree.below[depth], tree.below[depth + 1])


@compiled
def _tree(exact: Counts, share: Counts, slots: int, work_limit: int) -> _Tree:
    E, depths = len(exact.one), slots + 1
    tree = _Tree(
        np.zeros((depths, E), dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros((depths, E)),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths),
        np.zeros(depths),
        np.zeros((depths, E), dtype=np.int32),
        np.zeros((depths, E), dtype=np.int32),
    )
    tree.candidates[0] = np.arange(E)
    tree.num[0] = E
    tree.end[0] = work_limit
    tree.adds[0] = exact.one
    tree.share[0] = share.one
    return tree


@compiled
def _score(tree: _Tree, depth: int, price: NDArray[np.float64], left: int) -> float:
    """Sort the candidates by what they cost at least, and add up the `left` lowest."""
    candidates, score = tree.candidates[depth], tree.score[depth]
    for i in range(tree.num[depth]):
        candidate, at = candidates[i], i
        value = tree.share[depth, candidate] - price[candidate]
        while at > 0 and score[at - 1] > value:
            score[at] = score[at - 1]
            candidates[at] = candidates[at - 1]
            at -= 1
        score[at] = value
        candidates[at] = candidate
    total = 0.0
    for i in range(left):
        total += score[i]
    return total


@compiled
def _last_choices(
    exact: Counts, tree: _Tree, depth: int, price: NDArray[np.float64], slots: int, threshold: float,
    column: NDArray[np.uint8],
) -> tuple[float, int]:  # fmt: skip
    """The least cost of completing the chosen by one expert or two, or a bound above the threshold; pairs tried.

    column: written where the least cost is below the threshold.
    """
    n, left, cost = tree.num[depth], slots - depth, tree.cost[depth]
    candidates, score, adds = tree.candidates[depth], tree.score[depth], tree.adds[depth]
    least, tried, first, second = np.inf, 0, -1, -1
    for i in range(n):
        e = candidates[i]
        with_e = cost + adds[e] - price[e]
        if left == 1:
            tried += 1
            if with_e < least:
                least, first = with_e, e
            continue
        for j in range(i + 1, n):
            bound = cost + score[i] + score[j]
            if bound >= min(least, threshold):
                # All that follow cost no less.
                least = min(least, bound)
                break
            f = candidates[j]
            tried += 1
            value = with_e + adds[f] - price[f] + pair_adds(exact, tree.chosen[:depth], e, f)
            if value < least:
                least, first, second = value, e, f
    if least < threshold and first >= 0:
        column[:] = 0
        for d in range(depth):
            column[tree.chosen[d]] = 1
        column[first] = 1
        if left == 2:
            column[second] = 1
    return least, tried


@compiled
def _next_branch(tree: _Tree, depth: int, slots: int, threshold: float, work: int) -> bool:
    """Move on to the next candidate that is worth trying; False, with `below` lowered, where none is."""
    left = slots - depth
    tree.position[depth] += 1
    i = tree.position[depth]
    if i > tree.num[depth] - left:
        return False
    bound = tree.cost[depth]
    for j in range(left):
        bound += tree.score[depth, i + j]
    if bound >= threshold or work >= tree.end[depth]:
        tree.below[depth] = min(tree.below[depth], bound)
        return False
    return True


@compiled
def _descend(exact: Counts, share: Counts, tree: _Tree, depth: int, price: NDArray[np.float64], work: int) -> None:
    """Choose the candidate at `position`; those before it are out of the branch."""
    i, n = tree.position[depth], tree.num[depth]
    e = tree.candidates[depth, i]
    tree.chosen[depth] = e
    tree.cost[depth + 1] = tree.cost[depth] + tree.adds[depth, e] - price[e]
    tree.num[depth + 1] = n - i - 1
    tree.candidates[depth + 1, : n - i - 1] = tree.candidates[depth, i + 1 : n]
    # The branches that come first are the ones that hold the bound down: each may use half of what is left.
    tree.end[depth + 1] = work + 3 * (tree.end[depth] - work + 1) // 4
    tree.adds[depth + 1] = tree.adds[depth]
    tree.share[depth + 1] = tree.share[depth]
    count_chosen(exact, tree.chosen[:depth], e, tree.adds[depth + 1])
    count_chosen(share, tree.chosen[:depth], e, tree.share[depth + 1])
