"""The cheapest experts that one rank can hold where any function of masks is what it pays: branch and bound.

A rank may pay in several *ways*, each a function of masks, and what a column costs is the largest of them. Experts are
chosen one by one, those that look cheapest first; scores of those still to choose bound a branch (`mask_tree.py`).

The search ends with the bound on all columns. Where half of its work does not bring it to an end it becomes *slack*: it
leaves branches whose bound is not much below the cheapest column known, and ever more of them, so that it ends in time;
the lowest bound of what it left is then the bound on all columns.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.mask_costs import MaskCosts, pair_adds
from specmoe.placement.bounds.mask_tree import Tree, new_tree, rank_candidates

# Where slack begins, as a share of the work.
_PATIENCE = 0.5
# Operations for each pair of last choices that is tried.
_WORK_PER_PAIR = 30


class Cheapest(NamedTuple):
    """bound: every column costs at least this, or more than the threshold; column: uint8 [E], the last one found within
    the threshold, if `is_found`; is_complete: whether the search came to its end; work: operations.
    """

    bound: float
    column: NDArray[np.uint8]
    is_found: bool
    is_complete: bool
    work: int


@compiled
def cheapest_column(
    costs: MaskCosts, constant: NDArray[np.float64], price: NDArray[np.float64], slots: int, threshold: float,
    work_limit: int,
) -> Cheapest:  # fmt: skip
    """What any `slots` experts cost at least, the largest over ways, less their prices, whole numbers [E].

    constant: [L], what comes on top in each way; threshold: only columns below it are sought; it follows the cheapest
    one found.
    """
    E = len(price)
    tree = new_tree(costs, constant, slots)
    found, column = False, np.zeros(E, dtype=np.uint8)
    work, depth, is_new, root = E, 0, True, -np.inf
    while True:
        goal = _goal(threshold, root, work, work_limit)
        if is_new:
            own, spent = rank_candidates(costs, tree, depth, price, slots - depth, threshold)
            tree.below[depth] = np.inf
            tree.position[depth] = -1
            work += spent
            root = own if depth == 0 else root
            if own >= goal:
                tree.below[depth] = own
                tree.position[depth] = tree.num[depth]
            elif slots - depth <= 2:
                least, tried = _last_choices(costs, tree, depth, price, slots, threshold, column)
                tree.below[depth] = least
                tree.position[depth] = tree.num[depth]
                work += tried * _WORK_PER_PAIR
                if least < threshold:
                    threshold, found = least, True
        is_new = _next_branch(tree, depth, slots, min(goal, threshold))
        if is_new:
            _descend(tree, depth)
            depth += 1
            continue
        if depth == 0:
            return Cheapest(tree.below[0], column, found, tree.below[0] >= threshold, work)
        depth -= 1
        tree.below[depth] = min(tree.below[depth], tree.below[depth + 1])


@compiled
def _goal(threshold: float, root: float, work: int, work_limit: int) -> float:
    """Branches whose bound is below this are looked into; root: the bound on all columns."""
    if work >= work_limit:
        return -np.inf
    late = (work / work_limit - _PATIENCE) / (1.0 - _PATIENCE)
    if late <= 0.0 or threshold == np.inf:
        return threshold
    return threshold - late**2 * (threshold - root)


@compiled
def _last_choices(
    costs: MaskCosts, tree: Tree, depth: int, price: NDArray[np.float64], slots: int, threshold: float,
    column: NDArray[np.uint8],
) -> tuple[float, int]:  # fmt: skip
    """The least cost of completing the chosen by one expert or two, or a bound above the threshold; pairs tried.

    column: written where the least cost is below the threshold.
    """
    n, left, bound_of_chosen = tree.num[depth], slots - depth, tree.cost[depth, tree.way[depth]]
    candidates, score = tree.candidates[depth], tree.score[depth]
    least, tried, first, second = np.inf, 0, -1, -1
    for i in range(n):
        e = candidates[i]
        if left == 1:
            tried += 1
            value = (tree.cost[depth] + tree.adds[depth, :, e]).max() - price[e]
            if value < least:
                least, first = value, e
            continue
        for j in range(i + 1, n):
            bound = bound_of_chosen + score[i] + score[j]
            if bound >= min(least, threshold):
                # All that follow cost no less.
                least = min(least, bound)
                break
            tried += 1
            value = _pair_cost(costs, tree, depth, e, candidates[j]) - price[e] - price[candidates[j]]
            if value < least:
                least, first, second = value, e, candidates[j]
    if least < threshold and first >= 0:
        column[:] = 0
        for d in range(depth):
            column[tree.chosen[d]] = 1
        column[first] = 1
        if left == 2:
            column[second] = 1
    return least, tried


@compiled
def _pair_cost(costs: MaskCosts, tree: Tree, depth: int, first: int, second: int) -> float:
    """What the chosen and two more cost, the largest over ways."""
    most, chosen = -np.inf, tree.chosen[:depth]
    for way in range(tree.cost.shape[1]):
        adds = tree.adds[depth, way]
        value = tree.cost[depth, way] + adds[first] + adds[second] + pair_adds(costs.exact, way, chosen, first, second)
        most = max(most, value)
    return most


@compiled
def _next_branch(tree: Tree, depth: int, slots: int, goal: float) -> bool:
    """Move on to the next candidate that is worth trying; False, with `below` lowered, where none is."""
    left = slots - depth
    tree.position[depth] += 1
    i = tree.position[depth]
    if i > tree.num[depth] - left:
        return False
    bound = tree.cost[depth, tree.way[depth]]
    for j in range(left):
        bound += tree.score[depth, i + j]
    if bound >= goal:
        tree.below[depth] = min(tree.below[depth], bound)
        return False
    return True


@compiled
def _descend(tree: Tree, depth: int) -> None:
    """Choose the candidate at `position`; those before it are out of the branch."""
    i, n = tree.position[depth], tree.num[depth]
    tree.chosen[depth] = tree.candidates[depth, i]
    tree.num[depth + 1] = n - i - 1
    tree.candidates[depth + 1, : n - i - 1] = tree.candidates[depth, i + 1 : n]
