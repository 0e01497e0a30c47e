"""How little a rank can pay for what it has yet to choose: a score for each expert by itself.

Let A be chosen and q experts B still to choose, marginal[e] the weight of the groups with e that A does not meet, and
pair[e, f] that of those with e and f. For every whole m >= 1 and k >= 1 (Dawson and Sankoff, 1967)

    1  >=  2 k / (m + 1)  -  k (k - 1) / (m (m + 1)),

because the difference is (k - m)(k - m - 1) / (m (m + 1)), a product of neighbours; at k = 0 both sides are 0. Summed
over the groups that A does not meet, with k the number of experts of B in a group, B adds at least

    sum over e in B of  2 / (m + 1) marginal[e] - 1 / (m (m + 1)) sum over f in B, f != e, of pair[e, f],

and the inner sum is at most that of the q - 1 largest pair[e, .]. As k is at most min(K, q) = n, marginal[e] / n does
as well, without pairs. Less what e earns, that is a score for each expert; the q lowest bound every choice.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.lowest import keep_low, sort_both


@compiled
def score_candidates(
    candidates: NDArray[np.int64],
    left: int,
    size: int,
    marginal: NDArray[np.int32],
    pair: NDArray[np.int32],
    price: NDArray[np.float64],
    score: NDArray[np.float64],
    scratch: NDArray[np.float64],
) -> float:
    """Write the scores [n] of the m that bounds best, sort the candidates [n] by them; the sum of the `left` lowest.

    size: K; marginal: [E], pair: [E * E], price: float64 [E]; scratch: float64 [3, E + 1].
    """
    n, E = len(candidates), len(marginal)
    companions, trial, kept = scratch[0], scratch[1], scratch[2]
    for i in range(n):
        row = pair[candidates[i] * E : candidates[i] * E + E]
        companions[i] = _sum_of_largest(row, candidates, i, left - 1, kept)
    most = min(size, left)
    best = -np.inf
    for m in range(1, most + 1):
        single = 2.0 / (m + 1) if m < most else 1.0 / most
        double = 1.0 / (m * (m + 1)) if m < most else 0.0
        for i in range(n):
            trial[i] = single * marginal[candidates[i]] - price[candidates[i]] - double * companions[i]
        low = _sum_of_lowest(trial[:n], left, kept)
        if low > best:
            best = low
            score[:n] = trial[:n]
    sort_both(score, candidates)
    return best


@compiled
def _sum_of_largest(
    row: NDArray[np.int32], candidates: NDArray[np.int64], skip: int, count: int, kept: NDArray[np.float64]
) -> float:
    """The sum of the `count` largest of `row[candidates]` but the one at `skip`, negative ones left out."""
    held, total = 0, 0.0
    for i in range(len(candidates)):
        value = float(row[candidates[i]])
        if i != skip and value > 0.0:
            held, change = keep_low(-value, held, count, kept)
            total -= change
    return total


@compiled
def _sum_of_lowest(values: NDArray[np.float64], count: int, kept: NDArray[np.float64]) -> float:
    """The sum of the `count` lowest values; there are at least so many."""
    held, total = 0, 0.0
    for value in values:
        held, change = keep_low(value, held, count, kept)
        total += change
    return total
