"""The cheapest experts that one rank can hold where any function of masks is what it pays: branch and bound.

A rank may pay in several *ways*, each a function of masks, and what a column costs is the largest of them. Experts are
chosen one by one, those that look cheapest first. With A chosen and q experts B still to choose, B adds in each way at
least, by the counts of `mask_costs.py`,

    sum over e in B of  single(e) + sum over f in B, f != e, of share(e, f) pair(e, f),   share(e, f) + share(f, e) = 1,

and the inner sum is at least that of the q - 1 lowest. That is a score for each expert; the q lowest bound every
choice. Shares that leave a pair's term to the more used expert keep the others from looking cheap. The search ends
with the bound on all columns, or, when its work is used up, with the lowest bound of the parts that it has not looked
into.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.mask_costs import MaskCosts, count_chosen, count_pairs, pair_adds

# Operations, about a nanosecond each, per node and pair of its candidates, per row of counts added, and per pair tried.
_WORK_PER_NODE, _WORK_PER_CANDIDATES, _WORK_PER_ROW, _WORK_PER_PAIR = 250, 4, 10, 40


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
    E] of the `way` [c + 1] that bounds best; position: the candidate being tried; end: work at which to stop; chosen;
    cost [c + 1, L] of the chosen; below: the lowest bound among finished branches; adds: int32 [c + 1, L, E], what
    experts add now; beyond: int32 [c + 1, L, E, E], what pairs add beyond that at least.
    """

    candidates: NDArray[np.int64]
    num: NDArray[np.int64]
    score: NDArray[np.float64]
    way: NDArray[np.int64]
    position: NDArray[np.int64]
    end: NDArray[np.int64]
    chosen: NDArray[np.int64]
    cost: NDArray[np.float64]
    below: NDArray[np.float64]
    adds: NDArray[np.int32]
    beyond: NDArray[np.int32]


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
    tree = _tree(costs, constant, slots, work_limit)
    found, column = False, np.zeros(E, dtype=np.uint8)
    work, depth, is_complete, is_new = E, 0, True, True
    while True:
        if is_new:
            own, spent = _rank_candidates(costs, tree, depth, price, slots - depth, threshold)
            tree.below[depth] = np.inf
            tree.position[depth] = -1
            work += spent
            if own >= threshold:
                tree.below[depth] = own
                tree.position[depth] = tree.num[depth]
            elif slots - depth <= 2:
                least, tried = _last_choices(costs, tree, depth, price, slots, threshold, column)
                tree.below[depth] = least
                tree.position[depth] = tree.num[depth]
                work += tried * _WORK_PER_PAIR
                if least < threshold:
                    threshold, found = least, True
        is_new = _next_branch(tree, depth, slots, threshold, work)
        if is_new:
            _descend(tree, depth, work)
            depth += 1
            continue
        is_complete = is_complete and work < tree.end[depth]
        if depth == 0:
            # Costs are whole, and a score is off by far less than one.
            return Cheapest(np.floor(tree.below[0]), column, found, is_complete, work)
        depth -= 1
        tree.below[depth] = min(tree.below[depth], tree.below[depth + 1])


@compiled
def _tree(costs: MaskCosts, constant: NDArray[np.float64], slots: int, work_limit: int) -> _Tree:
    (L, E), depths = costs.exact.one.shape, slots + 1
    tree = _Tree(
        np.zeros((depths, E), dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros((depths, E)),
        np.zeros(depths, dtype=np.int64),
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
    tree.end[0] = work_limit
    tree.cost[0] = constant
    tree.adds[0] = costs.exact.one
    tree.beyond[0] = costs.pairs.two
    return tree


@compiled
def _rank_candidates(
    costs: MaskCosts, tree: _Tree, depth: int, price: NDArray[np.float64], left: int, threshold: float
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
    costs: MaskCosts, tree: _Tree, depth: int, way: int, price: NDArray[np.float64], left: int, threshold: float,
    best: float,
) -> tuple[float, int]:  # fmt: skip
    """The bound by one way, and its work; where it is above `best`, candidates are sorted by it.

    Those with which every choice reaches the threshold are left out, also as companions.
    """
    n, E = tree.num[depth], len(price)
    adds, beyond = tree.adds[depth, way], tree.beyond[depth, way]
    candidates, score, kept = np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(E)
    for i in range(n):
        e, at = tree.candidates[depth, i], i
        value = adds[e] - price[e]
        value += _lowest_shares(tree.candidates[depth, :n], e, beyond, costs.pairs.share, left - 1, kept)
        while at > 0 and score[at - 1] > value:
            score[at] = score[at - 1]
            candidates[at] = candidates[at - 1]
            at -= 1
        score[at] = value
        candidates[at] = e
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
def _leave_out(tree: _Tree, depth: int, dropped: NDArray[np.int64]) -> None:
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
def _lowest_shares(
    candidates: NDArray[np.int64], expert: int, beyond: NDArray[np.int32], share: NDArray[np.float64], count: int,
    kept: NDArray[np.float64],
) -> float:  # fmt: skip
    """The sum of the `count` lowest of the expert's shares in its pairs with other candidates."""
    held, total = 0, 0.0
    for f in candidates:
        if f == expert:
            continue
        value = beyond[expert, f] * share[expert, f]
        if held < count:
            at = held
            held += 1
        elif count > 0 and value < kept[count - 1]:
            at = count - 1
            total -= kept[at]
        else:
            continue
        total += value
        while at > 0 and kept[at - 1] > value:
            kept[at] = kept[at - 1]
            at -= 1
        kept[at] = value
    return total


@compiled
def _last_choices(
    costs: MaskCosts, tree: _Tree, depth: int, price: NDArray[np.float64], slots: int, threshold: float,
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
def _pair_cost(costs: MaskCosts, tree: _Tree, depth: int, first: int, second: int) -> float:
    """What the chosen and two more cost, the largest over ways."""
    most, chosen = -np.inf, tree.chosen[:depth]
    for way in range(tree.cost.shape[1]):
        adds = tree.adds[depth, way]
        value = tree.cost[depth, way] + adds[first] + adds[second] + pair_adds(costs.exact, way, chosen, first, second)
        most = max(most, value)
    return most


@compiled
def _next_branch(tree: _Tree, depth: int, slots: int, threshold: float, work: int) -> bool:
    """Move on to the next candidate that is worth trying; False, with `below` lowered, where none is."""
    left = slots - depth
    tree.position[depth] += 1
    i = tree.position[depth]
    if i > tree.num[depth] - left:
        return False
    bound = tree.cost[depth, tree.way[depth]]
    for j in range(left):
        bound += tree.score[depth, i + j]
    if bound >= threshold or work >= tree.end[depth]:
        tree.below[depth] = min(tree.below[depth], bound)
        return False
    return True


@compiled
def _descend(tree: _Tree, depth: int, work: int) -> None:
    """Choose the candidate at `position`; those before it are out of the branch."""
    i, n = tree.position[depth], tree.num[depth]
    tree.chosen[depth] = tree.candidates[depth, i]
    tree.num[depth + 1] = n - i - 1
    tree.candidates[depth + 1, : n - i - 1] = tree.candidates[depth, i + 1 : n]
    # The branches that come first are the ones that hold the bound down: each may use half of what is left.
    tree.end[depth + 1] = work + 3 * (tree.end[depth] - work + 1) // 4


@compiled
def _count_last(costs: MaskCosts, tree: _Tree, depth: int, way: int, price: NDArray[np.float64]) -> int:
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
