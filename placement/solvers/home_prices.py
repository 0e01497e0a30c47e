"""Where rows of tokens should start, when every rank takes its share: a transportation problem solved by R prices.

    share[n, r] = softmax over r of -(cost[n, r] + price[r]) / temperature,   sum_n weight[n] share[n, r] = total / R

At a low temperature this is the cheapest rank after prices; a higher one states how unsure the costs are, and keeps an
alternation of homes and placements from freezing at its first step.
"""

import math

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled

_DAMPING = 0.7
_NO_SHARE = 30.0
_TOLERANCE = 0.01


@compiled
def priced_shares(
    cost: NDArray[np.float64],
    weight: NDArray[np.float64],
    target: NDArray[np.float64],
    price: NDArray[np.float64],
    temperature: float,
    rounds: int,
) -> NDArray[np.float64]:
    """float64 [N, R]: each row's shares of the ranks; `price` [R] is where the prices start and end.

    cost: float64 [N, R] per token; weight: float64 [N] tokens; target: float64 [R], the part of all tokens that each
    rank takes, sum 1; stops when every rank is within one percent, or after `rounds`.
    """
    num_rows, ep_size = cost.shape
    share = np.zeros((num_rows, ep_size))
    filled = np.zeros(ep_size)
    total = weight.sum()
    for _ in range(rounds):
        filled[:] = 0.0
        for n in range(num_rows):
            if weight[n] == 0.0:
                continue
            best = np.inf
            for r in range(ep_size):
                best = min(best, cost[n, r] + price[r])
            norm = 0.0
            for r in range(ep_size):
                gap = (cost[n, r] + price[r] - best) / temperature
                # Most ranks are too dear to get a share that counts.
                share[n, r] = math.exp(-gap) if gap < _NO_SHARE else 0.0
                norm += share[n, r]
            for r in range(ep_size):
                share[n, r] /= norm
                filled[r] += weight[n] * share[n, r]
        worst = 0.0
        for r in range(ep_size):
            part = max(filled[r] / total, 1e-6) / target[r]
            worst = max(worst, abs(part - 1.0))
            price[r] += _DAMPING * temperature * math.log(part)
        if worst < _TOLERANCE:
            break
    return share
