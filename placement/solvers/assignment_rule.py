"""How requests spread over ranks under the contract's rule, when they may come in any order."""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import assign_requests


def simulated_shares(
    pull: NDArray[np.float64], lengths: NDArray[np.int64], *, orders: int, seed: int
) -> NDArray[np.float64]:
    """float64 [Q, R]: how often each request lands on each rank, over its own order and `orders - 1` random ones.

    pull: float64 [Q, R], of whole requests; lengths: int64 [Q].
    """
    rng = np.random.default_rng(seed)
    share = np.zeros_like(pull)
    rows = np.arange(len(lengths))
    for turn in range(orders):
        order = rows if turn == 0 else rng.permutation(len(lengths))
        share[order, assign_requests(lengths[order], pull[order])] += 1.0 / orders
    return share
