"""A few of many weighed things in place of all: the heavy ones, and every n-th of the others for n of them."""

import numpy as np
from numpy.typing import NDArray


def stand_for_all(weight: NDArray[np.float64], limit: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which entries stand for all, about `limit` of them, and for what weight each."""
    if len(weight) <= limit:
        return np.arange(len(weight)), weight
    order = np.argsort(-weight, kind="stable")
    sorted_weight = weight[order]
    rest = np.cumsum(sorted_weight[::-1])[::-1]
    # The first item lighter than an even share of what is left starts the part that is thinned out.
    share = rest / np.maximum(limit - np.arange(len(rest)), 1)
    heavy = int(np.argmax((sorted_weight <= share) | (np.arange(len(rest)) >= limit - 1)))
    marks = (np.arange(limit - heavy) + 0.5) * share[heavy]
    light = heavy + np.searchsorted(np.cumsum(sorted_weight[heavy:]), marks)
    chosen = np.concatenate([order[:heavy], order[np.minimum(light, len(order) - 1)]])
    return chosen, np.concatenate([sorted_weight[:heavy], np.full(len(light), share[heavy])])
