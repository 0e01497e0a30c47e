"""A cheap column for one rank by swaps, where any function of the masks is what it pays: no proof, but a good guess."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled

_MOST_SWAPS = 30


@compiled
def descend_column(
    sets: NDArray[np.int32],
    cost: NDArray[np.float64],
    price: NDArray[np.float64],
    column: NDArray[np.uint8],
    masks: NDArray[np.uint8],
) -> float:
    """Swap experts of `column` [E], in place, while that makes it cheaper; what it costs then, less its prices [E].

    cost: float64 [S, 2 ** K]; masks: uint8 [S], those of the column on return.
    """
    E, K = len(column), sets.shape[1]
    drop, take, both = np.zeros(E), np.zeros(E), np.zeros((E, E))
    value = 0.0
    for _ in range(_MOST_SWAPS):
        for e in range(E):
            drop[e], take[e] = price[e], -price[e]
            both[e] = 0.0
        value = -float((price * column).sum())
        for s in range(len(sets)):
            mask = 0
            for k in range(K):
                if column[sets[s, k]]:
                    mask |= 1 << k
            masks[s] = mask
            now = cost[s, mask]
            value += now
            for k in range(K):
                bit = 1 << k
                other = cost[s, mask ^ bit]
                if not mask & bit:
                    take[sets[s, k]] += other - now
                    continue
                drop[sets[s, k]] += other - now
                for j in range(K):
                    if not mask & 1 << j:
                        change = cost[s, mask ^ bit ^ 1 << j] - other - cost[s, mask | 1 << j] + now
                        both[sets[s, k], sets[s, j]] += change
        best, out, new = -1e-6, -1, -1
        for e in range(E):
            if not column[e]:
                continue
            for f in range(E):
                if not column[f] and drop[e] + take[f] + both[e, f] < best:
                    best, out, new = drop[e] + take[f] + both[e, f], e, f
        if out < 0:
            break
        column[out] = 0
        column[new] = 1
    return value
