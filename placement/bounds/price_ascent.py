"""A lower bound by prices for experts (Lagrangian relaxation; the dual of Dantzig and Wolfe's master program).

For any prices p, over all ways to give each rank r a column S_r such that every expert is in exactly one,

    sum over r of f_r(S_r)  =  sum over e of p_e + sum over r of (f_r(S_r) - p(S_r))
                           >=  sum over e of p_e + sum over r of min over S of (f_r(S) - p(S)),

p(S) the prices of the experts in S. The minimum over one rank's columns, load cap and slots included, is
`column_search.py`'s; where that stops early it gives a bound from below, which serves as well. The prices that make the
bound best are sought by turns: best prices for the columns found so far, then the cheapest columns at those prices.
Their bound is the one of choosing columns fractionally: far above the linear relaxation of an integer program over
(expert, rank) pairs, which 1/R of every expert on each rank satisfies at next to no cost.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.column_pool import ColumnPool
from specmoe.placement.bounds.column_search import search_columns
from specmoe.placement.bounds.rank_problem import RankProblem

# Prices have six binary digits after the point: sums with whole costs are exact in float64.
_PRICE_UNIT = 1 / 64
_ROUNDS = 60
_COLUMNS_PER_SEARCH = 64
# How far prices move from the best so far towards the pool's best: all the way is where they swing.
_TRUST = 0.6
# Within this share of the pool's bound nothing is left to win.
_CLOSE = 2e-4


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """bound: copies over all tokens that no choice of columns goes below, proven at price: float64 [E]; lowest: float64
    [kinds], the bound on a column's cost at these prices; pool: the columns found; work: operations spent.
    """

    bound: float
    price: NDArray[np.float64]
    lowest: NDArray[np.float64]
    pool: ColumnPool
    work: int


def ascend(problem: RankProblem, rank_of_expert: NDArray[np.int32], work_limit: int) -> Ascent:
    """The best bound within `work_limit` operations (about a nanosecond each); starts from a placement, int32 [E]."""
    pool = ColumnPool(problem)
    pool.add_neighbours(rank_of_expert)
    stuck_at = _seek_first_columns(problem, pool, work_limit)
    if stuck_at is not None:
        nothing = np.zeros(problem.num_experts)
        return Ascent(bound=stuck_at, price=nothing, lowest=np.zeros(len(problem.kinds)), pool=pool, work=work_limit)
    target = cost_of(problem, rank_of_expert)
    best = Ascent(bound=-np.inf, price=np.zeros(0), lowest=np.zeros(0), pool=pool, work=0)
    center, work = _fair_prices(problem, rank_of_expert), 0
    for turn in range(_ROUNDS):
        aim, reachable = pool.best_prices(center, target)
        trust = _TRUST if turn else 1.0
        price = np.round((center + trust * (aim - center)) / _PRICE_UNIT) * _PRICE_UNIT
        lowest = np.zeros(len(problem.kinds))
        for kind in range(len(problem.kinds)):
            share = (work_limit - work) // (len(problem.kinds) - kind)
            lowest[kind], spent = _lowest(problem, pool, kind, price, share)
            work += spent
        bound = float(price.sum()) + sum(k.count * low for k, low in zip(problem.kinds, lowest, strict=True))
        if bound > best.bound:
            best = Ascent(bound=bound, price=price, lowest=lowest, pool=pool, work=work)
            center = price
        if work >= work_limit or reachable - best.bound < _CLOSE * abs(target) or target - best.bound < 1.0:
            break
    return Ascent(bound=best.bound, price=best.price, lowest=best.lowest, pool=pool, work=work)


def _seek_first_columns(problem: RankProblem, pool: ColumnPool, work_limit: int) -> float | None:
    """Find a column for each kind of rank that has none; the bound to stay at where that fails, infinite if none is."""
    for kind, ranks in enumerate(problem.kinds):
        if len(pool.costs[kind]) > 0:
            continue
        free = np.zeros(problem.num_experts)
        found = search_columns(
            problem.groups, ranks.weights, free, ranks.room, np.inf, True, work_limit, _COLUMNS_PER_SEARCH
        )
        if found.num_found == 0:
            return np.inf if found.is_complete else 0.0
        pool.add(kind, found.held[: min(found.num_found, len(found.held))])
    return None


def _lowest(
    problem: RankProblem, pool: ColumnPool, kind: int, price: NDArray[np.float64], work_limit: int
) -> tuple[float, int]:
    """A bound on every column of `kind` at `price`, and the work done; the pool gains the columns on the way."""
    known, _ = pool.cheapest(kind, price)
    ranks = problem.kinds[kind]
    threshold = known - _PRICE_UNIT / 2
    found = search_columns(
        problem.groups, ranks.weights, price, ranks.room, threshold, True, work_limit, _COLUMNS_PER_SEARCH
    )
    if found.num_found:
        pool.add(kind, found.held[: min(found.num_found, len(found.held))])
    return min(known, found.bound), found.work


def cost_of(problem: RankProblem, rank_of_expert: NDArray[np.int32]) -> float:
    """What a placement, int32 [E], costs over all tokens."""
    columns = [(rank_of_expert == rank).astype(np.uint8)[None] for rank in range(len(problem.kind_of_rank))]
    kinds = problem.kind_of_rank
    return float(sum(problem.costs(int(kind), column)[0] for kind, column in zip(kinds, columns, strict=True)))


def _fair_prices(problem: RankProblem, rank_of_expert: NDArray[np.int32]) -> NDArray[np.float64]:
    """float64 [E]: a start: each column's cost, shared out by the experts' own weight."""
    price = np.zeros(problem.num_experts)
    for rank, kind in enumerate(problem.kind_of_rank):
        column = rank_of_expert == rank
        single = problem.kinds[kind].weights.single * column
        cost = problem.costs(int(kind), column.astype(np.uint8)[None])[0]
        price += single * (cost / max(float(single.sum()), 1.0))
    return price
