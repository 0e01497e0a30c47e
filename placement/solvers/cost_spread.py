"""How far the cost on other requests may lie from the expected one, by chance in which come and in what order.

The profile's requests are drawn anew with replacement, as many as there are (`load_drift`): what they cost deviates as
one draw does. The expected figure comes from one draw and the true one from another, so

    spread = 1.96 * sqrt(2) * deviation / mean

holds the true figure in 19 of 20 cases, where it is of as many requests as the profile has.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import assign_requests

_OF_19_IN_20 = 1.96 * 2.0**0.5
_REDRAWS = 100


def cost_spread(redrawn: NDArray[np.float64]) -> float:
    """The spread as a part of the expected cost; redrawn: float64 [B], the mean cost of each redraw, not negative."""
    return float(_OF_19_IN_20 * redrawn.std() / max(redrawn.mean(), 1e-12))


def redrawn_costs(
    pull: NDArray[np.float64], lengths: NDArray[np.int64], cost: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """float64 [B]: the mean cost per token of requests drawn anew, in the order in which they are drawn, under `dp`.

    pull: float64 [Q, R], of whole requests; lengths: int64 [Q]; cost: float64 [Q, R], per token of each by home.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros(_REDRAWS)
    for redraw in range(_REDRAWS):
        drawn = rng.integers(len(lengths), size=len(lengths))
        homes = assign_requests(lengths[drawn], pull[drawn])
        means[redraw] = np.average(cost[drawn, homes], weights=lengths[drawn])
    return means
