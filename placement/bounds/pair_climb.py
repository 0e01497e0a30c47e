"""Better prices for a branch of the search, by subgradient steps.

At the ranks' cheapest columns the bound changes with each price by what the price is about: a credit or a demand costs
each column that has the pair, and pays where it is saved or wanted; a price costs each column with the expert, and pays
once. Steps aim at the cost that the branch has to reach to be done with (Held and Karp, 1971).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_bound import Values, bound_branch, drop_dear
from specmoe.placement.bounds.pair_branch import OPEN, WANTED, Branch
from specmoe.placement.bounds.pair_layer import PairLayer


class _Slopes(NamedTuple):
    """Of credit, demand and price, in their shapes; 0 where a price can go no further."""

    credit: NDArray[np.int64]
    demand: NDArray[np.int64]
    price: NDArray[np.int64]


@compiled
def climb(layer: PairLayer, branch: Branch, values: Values, total: int, limit: int, steps: int) -> int:
    """The bound at the best prices of so many steps, which are the branch's afterwards; `limit` if it reaches that.

    Columns that cost too much are dropped on the way. total: the bound of the branch as it is.
    """
    slopes = _Slopes(np.zeros_like(branch.credit), np.zeros_like(branch.demand), np.zeros_like(branch.price))
    best, credit, demand, price = total, branch.credit.copy(), branch.demand.copy(), branch.price.copy()
    for _ in range(steps):
        norm = _slopes(layer, branch, values, slopes)
        if norm == 0:
            break
        size = max(1, (limit - total) // norm)
        _step(layer, branch, slopes, size)
        total = bound_branch(layer, branch, values)
        if not drop_dear(branch, values, limit - total):
            return limit
        if total > best:
            best = total
            credit[:], demand[:], price[:] = branch.credit, branch.demand, branch.price
    branch.credit[:], branch.demand[:], branch.price[:] = credit, demand, price
    return bound_branch(layer, branch, values)


@compiled
def _step(layer: PairLayer, branch: Branch, slopes: _Slopes, size: int) -> None:
    for p in range(len(branch.demand)):
        branch.demand[p] = max(branch.demand[p] + size * slopes.demand[p], 0)
        for rank in range(len(branch.num)):
            moved = branch.credit[rank, p] + size * slopes.credit[rank, p]
            branch.credit[rank, p] = min(max(moved, 0), layer.tokens[rank, p])
    for expert in range(len(branch.price)):
        branch.price[expert] = max(branch.price[expert] + size * slopes.price[expert], 0)


@compiled
def _slopes(layer: PairLayer, branch: Branch, values: Values, slopes: _Slopes) -> int:
    """Write the slopes; the sum of their squares."""
    masks = np.zeros(len(branch.num), dtype=np.int64)
    for rank in range(len(masks)):
        masks[rank] = layer.columns[layer.begin[rank] + values.cheapest[rank]]
    norm = _slopes_of_pairs(layer, branch, values, slopes, masks)
    for expert in range(len(branch.price)):
        slope = 0
        if not branch.is_held[expert]:
            slope = 1
            for rank in range(len(masks)):
                slope -= masks[rank] >> expert & 1
        slopes.price[expert] = 0 if slope < 0 and branch.price[expert] == 0 else slope
        norm += int(slopes.price[expert]) ** 2
    return norm


@compiled
def _slopes_of_pairs(
    layer: PairLayer, branch: Branch, values: Values, slopes: _Slopes, masks: NDArray[np.int64]
) -> int:
    """The same for credits and demand."""
    norm = 0
    for p in range(len(layer.pair)):
        pair, state, times = layer.pair[p], branch.pair_state[p], 0
        for rank in range(len(masks)):
            times += pair & masks[rank] == pair
        slope = 1 - times if state == WANTED else 0
        slopes.demand[p] = 0 if slope < 0 and branch.demand[p] == 0 else slope
        norm += int(slopes.demand[p]) ** 2
        for rank in range(len(masks)):
            slope = 0
            if state == OPEN:
                slope = int(values.is_saved[rank, p]) + int(pair & masks[rank] == pair) - times
            credit = branch.credit[rank, p]
            can_move = credit < layer.tokens[rank, p] if slope > 0 else credit > 0
            slopes.credit[rank, p] = slope if can_move else 0
            norm += int(slopes.credit[rank, p]) ** 2
    return norm
