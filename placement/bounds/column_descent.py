"""A cheap column for one rank by swaps, whatever functions of the masks it pays: no proof, but a good guess."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.credits import masks_of


@compiled
def descend_column(
    sets: NDArray[np.int32],
    cost: NDArray[np.float64],
    constant: NDArray[np.float64],
    price: NDArray[np.float64],
    column: NDArray[np.uint8],
    masks: NDArray[np.uint8],
    most_swaps: int,
) -> tuple[float, np.intp]:
    """Swap experts of `column` [E], in place, while that makes it cheaper, `most_swaps` times at most; what it costs
    then, the largest over ways, less its prices [E]; and which way that is.

    cost: float64 [L, S, 2 ** K], constant [L], what comes on top in each way; masks: uint8 [S], the column's on return.
    """
    L, E = len(cost), len(column)
    value, drop, take, both = np.zeros(L), np.zeros((L, E)), np.zeros((L, E)), np.zeros((L, E, E))
    for turn in range(most_swaps + 1):
        drop[:], take[:], both[:] = 0.0, 0.0, 0.0
        value[:] = constant
        masks_of(sets, column, masks)
        for way in range(L):
            value[way] += _count_swaps(sets, cost[way], masks, drop[way], take[way], both[way])
        now = value.max()
        best, out, new = -1e-6, -1, -1
        for e in range(E):
            if not column[e]:
                continue
            for f in range(E):
                if not column[f]:
                    change = price[e] - price[f] - now + _largest(value, drop[:, e], take[:, f], both[:, e, f])
                    if change < best:
                        best, out, new = change, e, f
        if out < 0 or turn == most_swaps:
            break
        column[out] = 0
        column[new] = 1
    return value.max() - (price * column).sum(), value.argmax()


@compiled
def _count_swaps(
    sets: NDArray[np.int32], cost: NDArray[np.float64], masks: NDArray[np.uint8], drop: NDArray[np.float64],
    take: NDArray[np.float64], both: NDArray[np.float64],
) -> float:  # fmt: skip
    """What the column costs; added up in drop, take and both: what dropping an expert changes, taking one, and both at
    once beyond these.
    """
    K, value = sets.shape[1], 0.0
    for s in range(len(sets)):
        mask = np.int64(masks[s])
        now = cost[s, mask]
        value += now
        for k in range(K):
            bit = np.int64(1) << k
            other = cost[s, mask ^ bit]
            if not mask & bit:
                take[sets[s, k]] += other - now
                continue
            drop[sets[s, k]] += other - now
            for j in range(K):
                if not mask >> j & 1:
                    change = cost[s, mask ^ bit ^ 1 << j] - other - cost[s, mask | 1 << j] + now
                    both[sets[s, k], sets[s, j]] += change
    return value


@compiled
def _largest(
    value: NDArray[np.float64], drop: NDArray[np.float64], take: NDArray[np.float64], both: NDArray[np.float64]
) -> float:
    most = -np.inf
    for way in range(len(value)):
        most = max(most, value[way] + drop[way] + take[way] + both[way])
    return most
