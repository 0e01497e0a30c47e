"""The best placement of a layer of few experts with its dispatch, exactly: branch and bound over the ranks' columns.

Ranks take their columns one by one, next always the rank with the fewest columns left. Prices (`pair_prices.py`) bound
what the others still cost: each pays for its cheapest column. Under `cover` what is known replaces prices: pairs that
some rank holds already are saved by every home that holds neither expert, those that wait for a rank are worth all
their tokens, and prices climb anew in each branch, from those of the branch above. Columns with which nothing can cost
less than the best known are left out in all of a branch. A placement whose loads can be borne by shares is given its
best dispatch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_dispatch import best_dispatch
from specmoe.placement.bounds.pair_layer import PairLayer
from specmoe.placement.bounds.pair_loads import holders_of, least_overload, room_of_sets
from specmoe.placement.bounds.pair_prices import PairPrices

# Nodes of one placement's dispatch.
_DISPATCH_NODES = 300_000
# Prices take so many steps where so many ranks are left at least. They leave fewer nodes to look into: of two layers
# measured a hundred times fewer in one, four fifths in another.
_STEPS, _FEWEST_LEFT = 25, 3


class PairFound(NamedTuple):
    """bound: nothing that keeps the ceilings costs less; cost: of the best found, or the limit it was to stay below;
    masks: int64 [R] and names: int64 [R, E], the placement and the ranks named, where `is_found`; nodes: looked into.
    """

    bound: int
    cost: int
    masks: NDArray[np.int64]
    names: NDArray[np.int64]
    is_found: bool
    nodes: int


class _Tree(NamedTuple):
    """One entry per depth, R + 1 of them. held: [.], experts that some rank holds; covered, waiting, credits: [., P];
    of_column: [., M], credits to each column; num: [., R] and left: [., R, N], the columns that a rank can still take;
    rank, position, num_children: [.], where the branch is; child, value: [., N], its columns and their bounds.
    taken, mask: [R], each rank's column, -1 for ranks that have none yet, and what is in it; values: [R, N], what
    columns cost at least, with lowest, cheapest: [R], the least of them. pair_credit: [., R, P] and price: [., E], the
    prices of the branch.
    """

    held: NDArray[np.int64]
    covered: NDArray[np.bool_]
    waiting: NDArray[np.int64]
    credits: NDArray[np.int64]
    of_column: NDArray[np.int64]
    num: NDArray[np.int64]
    left: NDArray[np.int16]
    rank: NDArray[np.int64]
    position: NDArray[np.int64]
    num_children: NDArray[np.int64]
    child: NDArray[np.int64]
    value: NDArray[np.int64]
    mask: NDArray[np.int64]
    taken: NDArray[np.int64]
    values: NDArray[np.int64]
    lowest: NDArray[np.int64]
    cheapest: NDArray[np.int64]
    pair_credit: NDArray[np.int64]
    price: NDArray[np.int64]


@compiled
def search_pairs(layer: PairLayer, prices: PairPrices, limit: int, nodes: int) -> PairFound:
    """The best that costs less than `limit`, within so many nodes."""
    R, E = layer.loads.shape
    tree, room = _tree(layer, prices), room_of_sets(layer.ceiling)
    bound_loads = np.zeros(1 << R, dtype=np.int64)
    best, names, found = np.zeros(R, dtype=np.int64), np.zeros((R, E), dtype=np.int64), False
    # What nothing left unsettled costs less than.
    open_bound, used, depth = limit, 0, 0
    _branch(layer, prices, tree, 0, limit)
    while depth >= 0:
        at = tree.position[depth]
        if at >= tree.num_children[depth] or tree.value[depth, at] >= limit:
            depth -= 1
            if depth >= 0:
                tree.taken[tree.rank[depth]] = -1
            continue
        if used >= nodes:
            open_bound = min(open_bound, tree.value[depth, at])
            tree.position[depth] = tree.num_children[depth]
            continue
        tree.position[depth] += 1
        used += 1
        _take(layer, prices, tree, depth, tree.child[depth, at])
        if depth + 1 < R:
            depth += 1
            _branch(layer, prices, tree, depth, limit)
            continue
        value, holders = tree.value[depth, at], holders_of(tree.mask, E)
        if holders.min() > 0 and least_overload(layer, holders, room, bound_loads) == 0:
            dispatched = best_dispatch(layer, tree.mask, room, limit, _DISPATCH_NODES)
            if dispatched.is_found:
                limit, found = dispatched.cost, True
                best[:] = tree.mask
                names[:] = dispatched.names
            if not dispatched.is_complete:
                open_bound = min(open_bound, value)
        tree.taken[tree.rank[depth]] = -1
    return PairFound(min(open_bound, limit), limit, best, names, found, used)


@compiled
def _tree(layer: PairLayer, prices: PairPrices) -> _Tree:
    R, E = layer.loads.shape
    P, M, N = len(layer.pair), len(layer.columns), prices.own.shape[1]
    tree = _Tree(
        np.zeros(R + 1, dtype=np.int64),
        np.zeros((R + 1, P), dtype=np.bool_),
        np.zeros((R + 1, P), dtype=np.int64),
        np.zeros((R + 1, P), dtype=np.int64),
        np.zeros((R + 1, M), dtype=np.int64),
        np.zeros((R + 1, R), dtype=np.int64),
        np.zeros((R + 1, R, N), dtype=np.int16),
        np.zeros(R + 1, dtype=np.int64),
        np.zeros(R + 1, dtype=np.int64),
        np.zeros(R + 1, dtype=np.int64),
        np.zeros((R + 1, N), dtype=np.int64),
        np.zeros((R + 1, N), dtype=np.int64),
        np.zeros(R, dtype=np.int64),
        np.full(R, -1, dtype=np.int64),
        np.zeros((R, N), dtype=np.int64),
        np.zeros(R, dtype=np.int64),
        np.zeros(R, dtype=np.int64),
        np.zeros((R + 1, R, P), dtype=np.int64),
        np.zeros((R + 1, E), dtype=np.int64),
    )
    tree.pair_credit[0] = prices.pair_credit
    tree.price[0] = prices.price
    for rank in range(R):
        tree.num[0, rank] = layer.end[rank] - layer.begin[rank]
        tree.left[0, rank] = np.arange(N)
        tree.credits[0] += prices.pair_credit[rank]
        for column in range(M):
            tree.of_column[0, column] += prices.credit[rank, layer.columns[column]]
    return tree


@compiled
def _branch(layer: PairLayer, prices: PairPrices, tree: _Tree, depth: int, limit: int) -> None:
    """Bound all columns of the ranks to come, drop those that cost too much, and order those of the next rank."""
    tree.position[depth] = 0
    tree.num_children[depth] = 0
    total = _bound(layer, prices, tree, depth)
    if total >= limit or not _keep_all_cheap(tree, depth, limit - total):
        return
    if layer.is_cover and len(tree.taken) - depth >= _FEWEST_LEFT:
        total = _climb(layer, prices, tree, depth, total, limit)
        if total >= limit:
            return
    fewest = -1
    for rank in range(len(tree.taken)):
        if tree.taken[rank] < 0 and (fewest < 0 or tree.num[depth, rank] < tree.num[depth, fewest]):
            fewest = rank
    num = tree.num[depth, fewest]
    own = tree.left[depth, fewest, :num]
    value = np.empty(num, dtype=np.int64)
    for i in range(num):
        value[i] = total - tree.lowest[fewest] + tree.values[fewest, own[i]]
    order = np.argsort(value, kind="mergesort")
    tree.rank[depth] = fewest
    tree.num_children[depth] = num
    tree.child[depth, :num] = own[order]
    tree.value[depth, :num] = value[order]


@compiled
def _bound(layer: PairLayer, prices: PairPrices, tree: _Tree, depth: int) -> int:
    """What the branch costs at least; writes the values of the columns left."""
    total = _cost_of_taken(layer, prices, tree, depth)
    for expert in range(layer.loads.shape[1]):
        total += tree.price[depth, expert] * (~tree.held[depth] >> expert & 1)
    for rank in range(len(tree.taken)):
        if tree.taken[rank] < 0:
            if layer.is_cover:
                _values_by_cover(layer, tree, depth, rank)
            else:
                _values_by_static(layer, prices, tree, depth, rank)
            total += tree.lowest[rank]
    return total


@compiled
def _keep_all_cheap(tree: _Tree, depth: int, room: int) -> bool:
    for rank in range(len(tree.taken)):
        if tree.taken[rank] < 0 and _keep_cheap(tree, depth, rank, room + tree.lowest[rank]) == 0:
            return False
    return True


@compiled
def _climb(layer: PairLayer, prices: PairPrices, tree: _Tree, depth: int, total: int, limit: int) -> int:
    """Better the branch's prices by subgradient steps, dropping columns on the way; the bound, `limit` if none is left.

    Branches below begin with these prices.
    """
    best, best_credit, best_price = total, tree.pair_credit[depth].copy(), tree.price[depth].copy()
    slope, slope_of_price = np.zeros_like(best_credit), np.zeros_like(best_price)
    for _ in range(_STEPS):
        norm = _slopes(layer, tree, depth, slope, slope_of_price)
        if norm == 0:
            break
        size = max(1, (limit - total) // norm)
        for rank in range(len(tree.taken)):
            if tree.taken[rank] < 0:
                for p in range(len(layer.pair)):
                    moved = tree.pair_credit[depth, rank, p] + size * slope[rank, p]
                    tree.pair_credit[depth, rank, p] = min(max(moved, 0), layer.tokens[rank, p])
        tree.price[depth] = np.maximum(tree.price[depth] + size * slope_of_price, 0)
        _sum_credits(tree, depth)
        total = _bound(layer, prices, tree, depth)
        if total >= limit or not _keep_all_cheap(tree, depth, limit - total):
            return limit
        if total > best:
            best = total
            best_credit[:] = tree.pair_credit[depth]
            best_price[:] = tree.price[depth]
    tree.pair_credit[depth] = best_credit
    tree.price[depth] = best_price
    _sum_credits(tree, depth)
    return _bound(layer, prices, tree, depth)


@compiled
def _slopes(
    layer: PairLayer, tree: _Tree, depth: int, slope: NDArray[np.int64], slope_of_price: NDArray[np.int64]
) -> int:
    """How the bound changes with each credit, int64 [R, P], and price, [E], 0 where these can go no further; the sum of
    squares.

    A credit costs each cheapest column that has the pair, and pays where the home's has none of it.
    """
    R, norm = len(tree.taken), 0
    columns, times = np.zeros(R, dtype=np.int64), np.zeros(len(layer.pair), dtype=np.int64)
    slope[:] = 0
    slope_of_price[:] = 1
    for rank in range(R):
        if tree.taken[rank] < 0:
            columns[rank] = layer.columns[layer.begin[rank] + tree.cheapest[rank]]
            for p in range(len(layer.pair)):
                times[p] += layer.pair[p] & columns[rank] == layer.pair[p]
            for expert in range(len(slope_of_price)):
                slope_of_price[expert] -= columns[rank] >> expert & 1
    for expert in range(len(slope_of_price)):
        is_least = slope_of_price[expert] < 0 and tree.price[depth, expert] == 0
        if is_least or tree.held[depth] >> expert & 1:
            slope_of_price[expert] = 0
        norm += slope_of_price[expert] ** 2
    for rank in range(R):
        for p in range(len(layer.pair)):
            if tree.taken[rank] >= 0 or tree.covered[depth, p]:
                continue
            part, credit = layer.pair[p] & columns[rank], tree.pair_credit[depth, rank, p]
            rise = int(part == 0) + int(part == layer.pair[p]) - times[p]
            can_move = credit < layer.tokens[rank, p] if rise > 0 else credit > 0
            slope[rank, p] = rise if can_move else 0
            norm += slope[rank, p] ** 2
    return norm


@compiled
def _sum_credits(tree: _Tree, depth: int) -> None:
    tree.credits[depth] = 0
    for rank in range(len(tree.taken)):
        if tree.taken[rank] < 0:
            tree.credits[depth] += tree.pair_credit[depth, rank]


@compiled
def _keep_cheap(tree: _Tree, depth: int, rank: int, limit: int) -> int:
    """Drop the rank's columns of `limit` and more; how many are kept."""
    kept = 0
    for i in range(tree.num[depth, rank]):
        column = tree.left[depth, rank, i]
        if tree.values[rank, column] < limit:
            tree.left[depth, rank, kept] = column
            kept += 1
    tree.num[depth, rank] = kept
    return kept


@compiled
def _cost_of_taken(layer: PairLayer, prices: PairPrices, tree: _Tree, depth: int) -> int:
    """What the ranks that have their columns pay."""
    total = 0
    for rank in range(len(tree.mask)):
        mask, column = tree.mask[rank], tree.taken[rank]
        if column < 0:
            continue
        if not layer.is_cover:
            total += prices.own[rank, column] - tree.of_column[depth, layer.begin[rank] + column]
            continue
        for expert in range(layer.loads.shape[1]):
            total += layer.loads[rank, expert] * (~mask >> expert & 1)
        for p in range(len(layer.pair)):
            if tree.covered[depth, p] and not mask & layer.pair[p]:
                total -= layer.tokens[rank, p]
    return total


@compiled
def _values_by_static(layer: PairLayer, prices: PairPrices, tree: _Tree, depth: int, rank: int) -> None:
    """Write what each of the rank's columns costs at least; the lowest of them."""
    tree.lowest[rank] = 1 << 60
    for i in range(tree.num[depth, rank]):
        column = tree.left[depth, rank, i]
        index = layer.begin[rank] + column
        value = prices.own[rank, column] - tree.of_column[depth, index]
        value += prices.credit[rank, layer.columns[index]]
        for k in range(layer.members.shape[1]):
            expert = layer.members[index, k]
            if expert >= 0 and not tree.held[depth] >> expert & 1:
                value -= tree.price[depth, expert]
        tree.values[rank, column] = value
        if value < tree.lowest[rank]:
            tree.lowest[rank], tree.cheapest[rank] = value, column


@compiled
def _values_by_cover(layer: PairLayer, tree: _Tree, depth: int, rank: int) -> None:
    """The same: a constant, less what each expert in the column is worth and what each pair in it is."""
    E, P = layer.loads.shape[1], len(layer.pair)
    constant = 0
    of_expert, of_pair = np.zeros(E, dtype=np.int64), np.zeros(P, dtype=np.int64)
    for expert in range(E):
        constant += layer.loads[rank, expert]
        of_expert[expert] = layer.loads[rank, expert]
        if not tree.held[depth] >> expert & 1:
            of_expert[expert] += tree.price[depth, expert]
    for p in range(P):
        refund = layer.tokens[rank, p]
        if not tree.covered[depth, p]:
            refund -= tree.pair_credit[depth, rank, p]
            of_pair[p] = tree.waiting[depth, p] + tree.credits[depth, p] - tree.pair_credit[depth, rank, p]
        constant -= refund
        of_expert[layer.first[p]] -= refund
        of_expert[layer.second[p]] -= refund
        of_pair[p] += refund
    tree.lowest[rank] = 1 << 60
    for i in range(tree.num[depth, rank]):
        column = tree.left[depth, rank, i]
        index = layer.begin[rank] + column
        value = constant
        for k in range(layer.members.shape[1]):
            if layer.members[index, k] >= 0:
                value -= of_expert[layer.members[index, k]]
        for k in range(layer.pairs_in.shape[1]):
            if layer.pairs_in[index, k] >= 0:
                value -= of_pair[layer.pairs_in[index, k]]
        tree.values[rank, column] = value
        if value < tree.lowest[rank]:
            tree.lowest[rank], tree.cheapest[rank] = value, column


@compiled
def _take(layer: PairLayer, prices: PairPrices, tree: _Tree, depth: int, column: int) -> None:
    """Give the branch's rank a column, and note what follows one deeper."""
    rank, M = tree.rank[depth], len(layer.columns)
    mask = layer.columns[layer.begin[rank] + column]
    tree.mask[rank], tree.taken[rank] = mask, column
    tree.held[depth + 1] = tree.held[depth] | mask
    tree.num[depth + 1] = tree.num[depth]
    tree.left[depth + 1] = tree.left[depth]
    tree.pair_credit[depth + 1] = tree.pair_credit[depth]
    tree.price[depth + 1] = tree.price[depth]
    if not layer.is_cover:
        for i in range(M):
            other = layer.columns[i]
            lost = prices.credit[rank, other] - prices.credit[rank, other & ~mask]
            tree.of_column[depth + 1, i] = tree.of_column[depth, i] - lost
        return
    for p in range(len(layer.pair)):
        part = mask & layer.pair[p]
        tree.covered[depth + 1, p] = tree.covered[depth, p] or part == layer.pair[p]
        tree.waiting[depth + 1, p] = tree.waiting[depth, p] + (layer.tokens[rank, p] if part == 0 else 0)
        tree.credits[depth + 1, p] = tree.credits[depth, p] - tree.pair_credit[depth, rank, p]
