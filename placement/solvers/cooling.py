"""Which rounds of annealing fit in the time that is left: all of them, or fewer from hot to cold.

A state that has been heated and not cooled is worse than the one before, so a search that must end soon cools faster.
How long a round takes is measured, at first by a cold one, which does no harm.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

# What follows the rounds, until the plan is legal, takes about as long as so many of them.
_ROUNDS_TO_SETTLE = 6


def cooling(rounds: int, steps: int, seconds_left: Callable[[], float | None]) -> Iterator[NDArray[np.int64]]:
    """The numbers of the rounds, 0 the hottest, in about `steps` groups that are to be carried out one by one.

    seconds_left: None where there is no limit.
    """
    pending, seconds_per_round = np.arange(rounds), 0.0
    group = pending[-1:] if seconds_left() is not None else pending[:0]
    while True:
        if len(group):
            begin = time.monotonic()
            yield group
            seconds_per_round = (time.monotonic() - begin) / len(group)
        left = seconds_left()
        if left is not None:
            affordable = int(left / max(seconds_per_round, 1e-9)) - _ROUNDS_TO_SETTLE
            pending = _thinned_out(pending, affordable)
        if len(pending) == 0:
            return
        group = np.array_split(pending, max(1, round(steps * len(pending) / rounds)))[0]
        pending = pending[len(group) :]


def _thinned_out(rounds: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """At most `limit` of the rounds, the last among them, as far apart as that allows."""
    if len(rounds) <= limit:
        return rounds
    if limit <= 0:
        return rounds[:0]
    return rounds[np.linspace(len(rounds), 0, limit, endpoint=False).astype(np.int64)[::-1] - 1]
