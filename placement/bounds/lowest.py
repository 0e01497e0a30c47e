"""The lowest of many numbers and their sum, one number after the other, and candidates in the order of their scores."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled


@compiled
def keep_low(value: float, held: int, count: int, kept: NDArray[np.float64]) -> tuple[int, float]:
    """Put a value among the `count` lowest, `kept[:held]`, ascending, if it is one; how many these are now, and how
    their sum changes.
    """
    if held < count:
        at, change = held, value
        held += 1
    elif count > 0 and value < kept[count - 1]:
        at = count - 1
        change = value - kept[at]
    else:
        return held, 0.0
    while at > 0 and kept[at - 1] > value:
        kept[at] = kept[at - 1]
        at -= 1
    kept[at] = value
    return held, change


@compiled
def sort_both(score: NDArray[np.float64], candidates: NDArray[np.int64]) -> None:
    """Sort candidates [n] by their score, ties by where they stand."""
    for i in range(1, len(candidates)):
        value, candidate, at = score[i], candidates[i], i
        while at > 0 and score[at - 1] > value:
            score[at] = score[at - 1]
            candidates[at] = candidates[at - 1]
            at -= 1
        score[at] = value
        candidates[at] = candidate
