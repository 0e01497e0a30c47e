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
        branch.credit[:] = np.minimum(np.maximum(branch.credit + size * slopes.credit, 0), layer.tokens)
        branch.demand[:] = np.maximum(branch.demand + size * slopes.demand, 0)
        branch.price[:] = np.maximum(branch.price + size * slopes.price, 0)
        total = bound_branch(layer, branch, values)
        if not drop_dear(branch, values, limit - total):
            return limit
        if total > best:
            best = total
            credit[:], demand[:], price[:] = branch.credit, branch.demand, branch.price
    branch.credit[:], branch.demand[:], branch.price[:] = credit, demand, price
    return bound_branch(layer, branch, values)


@compiled
def _slopes(layer: PairLayer, branch: Branch, values: Values, slopes: _Slopes) -> int:
    """Write the slopes; the sum of their squares."""
    R, E = layer.loads.shape
    masks = np.zeros(R, dtype=np.int64)
    for rank in range(R):
        masks[rank] = layer.columns[layer.begin[rank] + values.cheapest[rank]]
    norm = 0
    for p in range(len(layer.pair)):
        norm += _slopes_of_pair(layer, branch, values, slopes, masks, p)
    for expert in range(E):
        slope = 0 if branch.is_held[expert] else 1 - int((masks >> expert & 1).sum())
        slopes.price[expert] = 0 if slope < 0 and branch.price[expert] == 0 else slope
        norm += int(slopes.price[expert]) ** 2
    return norm


@compiled
def _slopes_of_pair(
    layer: PairLayer, branch: Branch, values: Values, slopes: _Slopes, masks: NDArray[np.int64], pair: int
) -> int:
    """The same for the credits and the demand of one pair."""
    state, norm, times = branch.pair_state[pair], 0, 0
    for rank in range(len(masks)):
        times += layer.pair[pair] & masks[rank] == layer.pair[pair]
    slope = 1 - times if state == WANTED else 0
    slopes.demand[pair] = 0 if slope < 0 and branch.demand[pair] == 0 else slope
    norm += int(slopes.demand[pair]) ** 2
    for rank in range(len(masks)):
        slope = 0
        if state == OPEN:
            holds_both = layer.pair[pair] & masks[rank] == layer.pair[pair]
            slope = int(values.is_saved[rank, pair]) + int(holds_both) - times
        credit = branch.credit[rank, pair]
        can_move = credit < layer.tokens[rank, pair] if slope > 0 else credit > 0
        slopes.credit[rank, pair] = slope if can_move else 0
        norm += int(slopes.credit[rank, pair]) ** 2
    return norm
