"""The tree of `mask_search.py`, and what bounds a branch of it: a score for every expert that can still be chosen.

With A chosen and q experts B still to choose, B adds in each way of paying at least, by the counts of `mask_costs.py`,

    sum over e in B of  single(e) + sum over f in B, f != e, of what e takes of the term of e and f,

and the inner sum is at least that of the q - 1 lowest. That is a score for each expert; the q lowest bound every
choice. Shares that leave a pair's term to the more used expert keep the others from looking cheap.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.lowest import keep_low, sort_both
from specmoe.placement.bounds.mask_costs import MaskCosts, count_chosen, count_pairs

# Operations, about a nanosecond each, per node and pair of its candidates, and per row of counts added.
_WORK_PER_NODE, _WORK_PER_CANDIDATES, _WORK_PER_ROW = 210, 3, 9


class Tree(NamedTuple):
    """One entry per depth. candidates [c + 1, E], num [c + 1]: what can still be chosen, cheapest first; score [c + 1,
    E] of the `way` [c + 1] that bounds best; position: the candidate being tried; chosen; cost [c + 1,
    L] of the chosen; below: the lowest bound among finished branches; adds: int32 [c + 1, L, E], what experts add now;
    beyond: int32 [c + 1, L, E, E], what pairs add beyond that at least.
    """

    candidates: NDArray[np.int64]
    num: NDArray[np.int64]
    score: NDArray[np.float64]
    way: NDArray[np.int64]
    position: NDArray[np.int64]
    chosen: NDArray[np.int64]
    cost: NDArray[np.float64]
    below: NDArray[np.float64]
    adds: NDArray[np.int32]
    beyond: NDArray[np.int32]


@compiled
def new_tree(costs: MaskCosts, constant: NDArray[np.float64], slots: int) -> Tree:
    """Nothing chosen yet."""
    (L, E), depths = costs.exact.one.shape, slots + 1
    tree = Tree(
        np.zeros((depths, E), dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros((depths, E)),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros((depths, L)),
        np.zeros(depths),
        np.zeros((depths, L, E), dtype=np.int32),
        np.zeros((depths, L, E, E), dtype=np.int32),
    )
    tree.candidates[0] = np.arange(E)
    tree.num[0] = E
    tree.cost[0] = constant
    tree.adds[0] = costs.exact.one
    tree.beyond[0] = costs.pairs.two
    return tree


@compiled
def rank_candidates(
    costs: MaskCosts, tree: Tree, depth: int, price: NDArray[np.float64], left: int, threshold: float
) -> tuple[float, int]:
    """Sort the candidates by their scores in the way that bounds best, the parent's first; the bound, and its work.

    The first way that reaches the threshold is enough; then the others are not even counted.
    """
    L, E = tree.adds[depth].shape
    best, work, first = -np.inf, 0, tree.way[max(depth - 1, 0)]
    for turn in range(L):
        way = (first + turn) % L
        if depth > 0:
            work += _count_last(costs, tree, depth, way, price)
        n = E + 1
        while tree.num[depth] < n:
            n = tree.num[depth]
            bound, spent = _score_candidates(costs, tree, depth, way, price, left, threshold, best)
            best = max(best, bound)
            work += spent
        if best >= threshold:
            break
    return best, work


@compiled
def _score_candidates(
    costs: MaskCosts, tree: Tree, depth: int, way: int, price: NDArray[np.float64], left: int, threshold: float,
    best: float,
) -> tuple[float, int]:  # fmt: skip
    """The bound by one way, and its work; where it is above `best`, candidates are sorted by it.

    Those with which every choice reaches the threshold are left out, also as companions.
    """
    n, E = tree.num[depth], len(price)
    adds, beyond = tree.adds[depth, way], tree.beyond[depth, way]
    candidates, score, kept = tree.candidates[depth, :n].copy(), np.zeros(n), np.zeros(E)
    for i in range(n):
        e = candidates[i]
        score[i] = adds[e] - price[e] + _lowest(candidates, e, beyond[e], left - 1, kept)
    sort_both(score, candidates)
    with_one_more = tree.cost[depth, way] + score[: left - 1].sum()
    bound = with_one_more + score[left - 1]
    if bound > best:
        tree.way[depth] = way
        tree.score[depth, :n] = score
        tree.candidates[depth, :n] = candidates
    if bound < threshold:
        while with_one_more + score[n - 1] >= threshold:
            n -= 1
        _leave_out(tree, depth, candidates[n:])
    return bound, int(_WORK_PER_NODE + len(score) ** 2 * _WORK_PER_CANDIDATES)


@compiled
def _leave_out(tree: Tree, depth: int, dropped: NDArray[np.int64]) -> None:
    """Take experts from the candidates, whose order stays."""
    if len(dropped) == 0:
        return
    is_out = np.zeros(tree.adds.shape[2], dtype=np.bool_)
    for e in dropped:
        is_out[e] = True
    n = 0
    for i in range(tree.num[depth]):
        if not is_out[tree.candidates[depth, i]]:
            tree.candidates[depth, n] = tree.candidates[depth, i]
            tree.score[depth, n] = tree.score[depth, i]
            n += 1
    tree.num[depth] = n


@compiled
def _lowest(
    candidates: NDArray[np.int64], expert: int, beyond: NDArray[np.int32], count: int, kept: NDArray[np.float64]
) -> float:
    """The sum of the `count` lowest of beyond, [E], among the candidates other than the expert."""
    held, total = 0, 0.0
    for f in candidates:
        if f != expert:
            held, change = keep_low(float(beyond[f]), held, count, kept)
            total += change
    return total


@compiled
def _count_last(costs: MaskCosts, tree: Tree, depth: int, way: int, price: NDArray[np.float64]) -> int:
    """Bring the counts of one way up to the last expert chosen; the operations that it takes."""
    above, candidates = depth - 1, tree.candidates[depth, : tree.num[depth]]
    e, chosen = tree.chosen[above], tree.chosen[:above]
    adds, beyond = tree.adds[depth, way], tree.beyond[depth, way]
    tree.cost[depth, way] = tree.cost[above, way] + tree.adds[above, way, e] - price[e]
    adds[:] = tree.adds[above, way]
    count_chosen(costs.exact, way, chosen, e, adds)
    for candidate in candidates:
        beyond[candidate] = tree.beyond[above, way, candidate]
    count_pairs(costs.pairs, way, chosen, e, candidates, beyond)
    return int(_WORK_PER_ROW * (1 + depth * (depth - 1) // 2 + (1 + depth) * len(candidates)))
