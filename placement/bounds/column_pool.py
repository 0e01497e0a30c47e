"""Columns that were found so far, with what each costs, and the best prices for experts by them alone."""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.rank_problem import RankProblem

_STEPS = 40
_PATIENCE = 5
_MEMORY = 0.3
# Steps aim at least this share of the target above what is reached.
_AIM = 1e-3
_SHORTEST_STEP = 0.01


class ColumnPool:
    """columns[k]: uint8 [M, E] and costs[k]: float64 [M] of each kind of rank."""

    def __init__(self, problem: RankProblem) -> None:
        self.problem = problem
        self.columns = [np.zeros((0, problem.num_experts), dtype=np.uint8) for _ in problem.kinds]
        self.costs = [np.zeros(0) for _ in problem.kinds]

    def add(self, kind: int, columns: NDArray[np.uint8]) -> None:
        """Take columns, uint8 [M, E], into the pool of `kind`; those that are there already may come again."""
        self.columns[kind] = np.vstack([self.columns[kind], columns])
        self.costs[kind] = np.append(self.costs[kind], self.problem.costs(kind, columns))

    def add_neighbours(self, rank_of_expert: NDArray[np.int32]) -> None:
        """The columns of a placement, int32 [E], and those that differ from them by one swap and keep the load cap."""
        for rank, kind in enumerate(self.problem.kind_of_rank):
            columns, costs = self.problem.swaps(int(kind), (rank_of_expert == rank).astype(np.uint8))
            self.columns[kind] = np.vstack([self.columns[kind], columns])
            self.costs[kind] = np.append(self.costs[kind], costs)

    def cheapest(self, kind: int, price: NDArray[np.float64]) -> tuple[float, NDArray[np.uint8]]:
        """What the cheapest column costs at `price` [E], less what it earns; and the column [E]."""
        reduced = self.costs[kind] - self.columns[kind] @ price
        row = int(reduced.argmin())
        return float(reduced[row]), self.columns[kind][row]

    def best_prices(self, price: NDArray[np.float64], target: float) -> tuple[NDArray[np.float64], float]:
        """Prices [E] that raise the pool's bound, by subgradient steps from `price` towards `target`, and that bound.

        It is no bound on anything but choices from the pool: a price to ask the exact search for.
        """
        best, best_price = -np.inf, price
        length, stale = 1.0, 0
        direction: NDArray[np.float64] | None = None
        for _ in range(_STEPS):
            value, missing = self._bound(price)
            if value > best + 1e-5 * abs(target):
                best, best_price, stale = value, price, 0
            else:
                stale += 1
            if not missing.any() or length < _SHORTEST_STEP:
                break
            if stale >= _PATIENCE:
                length, stale, price, direction = length / 2, 0, best_price, None
            direction = missing if direction is None else (1 - _MEMORY) * missing + _MEMORY * direction
            aim = max(target - value, _AIM * abs(target))
            price = price + length * aim / max(float((direction**2).sum()), 1e-12) * direction
        return best_price, best

    def _bound(self, price: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The pool's bound at `price`, and how often each expert is missing from its cheapest columns, [E]."""
        value, missing = float(price.sum()), np.ones(len(price))
        for kind, ranks in enumerate(self.problem.kinds):
            reduced, column = self.cheapest(kind, price)
            value += ranks.count * reduced
            missing -= ranks.count * column
        return value, missing
