"""A lower bound with replicas, for either replica choice: tokens' credits, prices for experts, and exact columns.

With the credits of `credits.py`, and for any prices d(e) >= 0, the copies of all tokens are at least

    sum over e of d(e) + sum over ranks r of min over S of (cost_r(S) - d(S)),
    cost_r(S) = sum over tokens at home on r of cover(s less S) - sum over other tokens of credit(S and s),

as every expert has a copy somewhere. Where the load cap can bind, a rank's cost is the larger of this and of what it
is where serving a pair has a price (`credits.py`): a column by which a rank would earn more than it may serve is
dearer than it looks, whatever other columns a mixture has.

Credits and prices climb by subgradient steps, from those by which the plan looks as good as it is: a credit rises for
the blocks that tokens would use and falls for the parts that columns serve, a price rises for an expert that no column
holds. On the way columns are good guesses (`column_descent.py`); the best credits, in whole units, are then put to the
exact search (`mask_search.py`), and that bound counts. Columns are chosen fractionally: a rank may hold half of one
column and half of another, which is most of what remains of the gap.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.column_descent import descend_column
from specmoe.placement.bounds.credits import TokenTypes, cost_masks, first_credits, masks_of, move_credits, price_covers
from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.mask_costs import can_count, count_masks
from specmoe.placement.bounds.mask_search import cheapest_column

_MOST_STEPS, _FEWEST_STEPS = 400, 8
# How far a step goes, first and last, in the climb's beginning and in what follows from the best so far.
_BEGINNING, _LATER = (0.3, 0.005), (0.05, 0.003)
_STEPS_TO_BEGIN = 200
_MEMORY = 0.4
# The step of a price, in tokens per expert, beside that of a credit.
_PRICE_STEP = 0.7
# Swaps from a rank's column of the step before, and where more are sought.
_FEW_SWAPS, _MOST_SWAPS = 5, 30
# Once in so many steps of a second half columns are also sought from elsewhere.
_FRESH = 5
# The price of serving a pair, in copies, beside a price of 0.
_LOAD_PRICE = 3 / 32
# Credits are whole numbers of this part of a copy when they are proven; the price of load is one of any such part.
_FINEST_UNIT, _COARSEST_UNIT = 1 / 1024, 1 / 32
_LARGEST_COUNT = 2**31
# What pairs add beyond their experts is within so many times what costs differ by.
_SUMS = 5
# Parts of the work: what goes to the climb at least, and what counts and searches may take at most. Most layers take
# far less, and those that do not may take more than is left.
_CLIMB, _PROOF = 0.4, 1.5
# Operations of a search at two prices, for each column as `search_work` counts them.
_WORK_PER_COLUMN = 3
# Operations of a step for each kind of token, beside those for each way to count; to find a rank's column for each set
# and way; and to count before a search.
_WORK_PER_TYPE, _WORK_PER_TYPE_AND_WAY, _WORK_PER_SET, _WORK_PER_COUNT = 40, 24, 36, 1200


class CreditAscent:
    """credit: float64 [M, N]; price: float64 [E]; columns: uint8 [R, E], the cheapest found at these.

    load_price: float64 [L], what serving a pair costs in each way to count; way: int64 [R], which one counts at a
    rank's column; cost: float64 [L, R, S, M].
    """

    def __init__(self, case: LayerCase, load_price: NDArray[np.float64]) -> None:
        self.case = case
        self.load_price = load_price
        self.types = TokenTypes.of(case)
        self.plan = case.holds.astype(np.uint8)
        self.columns = self.plan.copy()
        self.masks = np.zeros((case.ep_size, len(case.sets)), dtype=np.uint8)
        for rank in range(case.ep_size):
            masks_of(case.sets, self.plan[rank], self.masks[rank])
        self.credit = first_credits(self.types.set_of_type, self.types.home, self.masks, case.sets.shape[1])
        self.price = np.zeros(case.num_experts)
        self.cover = np.zeros_like(self.credit)
        self.cost = np.zeros((len(self.load_price), case.ep_size, len(case.sets), self.credit.shape[0]))
        self.way = np.zeros(case.ep_size, dtype=np.int64)
        self._direction = np.zeros_like(self.credit)
        self._scratch = np.zeros(3 * self.credit.size)
        self._missing = np.zeros(case.num_experts)
        self._best, self._best_credit, self._best_price = -np.inf, self.credit, self.price
        self._rng = np.random.default_rng(0)

    def guess(self, *, fresh: bool) -> None:
        """Find good columns at the credits and prices; where they are sought afresh, the best credits are kept."""
        self._price()
        value = float(self.price.sum())
        for rank in range(self.case.ep_size):
            value += self._guess_column(rank, -self.load_price * self.case.ceiling[rank], fresh=fresh)
        if fresh and value > self._best:
            self._best, self._best_credit, self._best_price = value, self.credit.copy(), self.price

    def go_back(self) -> None:
        """To the best credits and prices so far, at rest."""
        self.credit, self.price = self._best_credit.copy(), self._best_price
        self._direction[:], self._missing[:] = 0.0, 0.0

    def _price(self) -> None:
        types = self.types
        price_covers(self.credit, self.cover)
        cost_masks(
            types.starts, types.home, types.tokens, self.credit, self.cover, self.load_price, self._scratch, self.cost
        )  # fmt: skip

    def _guess_column(self, rank: int, constant: NDArray[np.float64], *, fresh: bool) -> float:
        """The least that was found for a rank with `constant`, [L], on top."""
        sets, cost = self.case.sets, self.cost[:, rank]
        least, self.way[rank] = descend_column(
            sets, cost, constant, self.price, self.columns[rank], self.masks[rank], _MOST_SWAPS if fresh else _FEW_SWAPS
        )
        if not fresh:
            return least
        anywhere = (self._rng.permutation(self.case.num_experts) < self.case.slots[rank]).astype(np.uint8)
        for column in (self.plan[rank].copy(), anywhere):
            masks = np.zeros(len(sets), dtype=np.uint8)
            value, way = descend_column(sets, cost, constant, self.price, column, masks, _MOST_SWAPS)
            if value < least:
                least, self.way[rank], self.columns[rank], self.masks[rank] = value, way, column, masks
        return least

    def climb(self, step: float) -> None:
        """Move credits and prices one step up."""
        types, load_price = self.types, self.load_price[self.way]
        move_credits(
            types.set_of_type, types.home, self.masks, load_price, self.cover, self._direction, self.credit, step,
            _MEMORY,
        )  # fmt: skip
        self._missing = _MEMORY * self._missing + (1 - _MEMORY) * (1.0 - self.columns.sum(axis=0))
        step *= _PRICE_STEP * self.case.num_tokens / self.case.num_experts
        self.price = np.maximum(self.price + step * self._missing, 0.0)

    def prove(self, work_limit: int) -> float:
        """The bound at the credits and prices, rounded down to whole units; within about `work_limit` operations."""
        case, unit = self.case, unit_of(self.case)
        self.credit = np.floor(self.credit / unit) * unit
        self.price = np.floor(self.price / unit) * unit
        self._price()
        if _SUMS * _widest(self.cost) / unit >= _LARGEST_COUNT:
            return 0.0
        bound, work = float(self.price.sum() / unit), count_work(case, len(self.load_price))
        for rank in range(case.ep_size):
            constant = np.floor(-self.load_price * case.ceiling[rank] / unit)
            known = round(self._guess_column(rank, constant * unit, fresh=True) / unit)
            costs = count_masks(case.sets, np.rint(self.cost[:, rank] / unit).astype(np.int32), case.load)
            share = 2 * (work_limit - work) // (case.ep_size - rank + 1)
            found = cheapest_column(
                costs, constant + costs.constant, self.price / unit, int(case.slots[rank]), known, share
            )
            bound += min(found.bound, known)
            work += found.work
        return bound * unit


def _widest(cost: NDArray[np.float64]) -> float:
    """The most that a rank's cost can change, by sums over sets of the largest less the smallest: of [L, R, S, M]."""
    return float((cost.max(axis=3) - cost.min(axis=3)).sum(axis=2).max())


def load_prices(case: LayerCase, work_limit: int) -> NDArray[np.float64]:
    """The prices of load at which columns are counted: 0, and one more where a rank can be too full and the work is
    enough.
    """
    can_be_full = case.ceiling.min() < case.load.sum()
    is_enough = work_limit >= search_work(case)
    return np.array([0.0, _LOAD_PRICE] if can_be_full and is_enough else [0.0])


def unit_of(case: LayerCase) -> float:
    """The part of a copy that costs are counted in, such that no count of `mask_costs.py` overflows."""
    unit = _FINEST_UNIT
    # Masks of a set seldom cost as much as 2 K copies a token more than others.
    while 2 * case.sets.shape[1] * _SUMS * case.num_tokens / unit >= _LARGEST_COUNT:
        unit *= 2
    return unit


def can_credit(case: LayerCase) -> bool:
    """Whether `credit_bound` can say anything: small sets of few experts."""
    return can_count(case.num_experts, case.sets.shape[1]) and unit_of(case) <= _COARSEST_UNIT


def step_work(case: LayerCase, ways: int) -> int:
    """Roughly the operations of one step."""
    per_type = _WORK_PER_TYPE + ways * _WORK_PER_TYPE_AND_WAY
    return int(np.count_nonzero(case.homes_of_set)) * per_type + ways * case.ep_size * len(case.sets) * _WORK_PER_SET


def count_work(case: LayerCase, ways: int) -> int:
    """Roughly the operations of the counts that the exact searches of all ranks work on."""
    return ways * case.ep_size * len(case.sets) * _WORK_PER_COUNT


def search_work(case: LayerCase) -> int:
    """Roughly the operations of these searches: between as many as there are columns, and as there would be of equally
    used experts whose loads have the same entropy. Experts that stand out make a search easy.
    """
    share = case.load[case.load > 0] / case.load.sum()
    alike = float(np.exp(-(share * np.log(share)).sum()))
    columns = [
        math.sqrt(_columns(case.num_experts, slots) * _columns(max(alike, slots), slots))
        for slots in case.slots.tolist()
    ]
    return int(_WORK_PER_COLUMN * sum(columns))


def _columns(num_experts: float, slots: int) -> float:
    """The binomial coefficient, of a number of experts that need not be whole."""
    return math.exp(math.lgamma(num_experts + 1) - math.lgamma(slots + 1) - math.lgamma(num_experts - slots + 1))


def credit_bound(case: LayerCase, work_limit: int, is_over: Callable[[], bool]) -> float:
    """Copies over all tokens that no placement goes below, with replicas; within about `work_limit` operations."""
    load_price = load_prices(case, work_limit)
    ways = len(load_price)
    climb = max(work_limit - count_work(case, ways) - search_work(case), int(_CLIMB * work_limit))
    steps = min(climb // step_work(case, ways), _MOST_STEPS)
    if steps < _FEWEST_STEPS:
        return 0.0
    ascent = CreditAscent(case, load_price)
    beginning = min(steps, _STEPS_TO_BEGIN)
    for (first, last), count in ((_BEGINNING, beginning), (_LATER, steps - beginning)):
        for turn in range(count):
            ascent.guess(fresh=(turn % _FRESH == 0 and turn >= count // 2) or turn == count - 1)
            if is_over():
                return 0.0
            ascent.climb(first * (last / first) ** (turn / count))
        ascent.go_back()
    return ascent.prove(int(_PROOF * work_limit))
