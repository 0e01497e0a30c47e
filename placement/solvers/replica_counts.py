"""How many copies each expert gets, from its count: the hottest per copy first, in steps that share evenly."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def replica_counts(counts: NDArray[np.int64], num_slots: int, steps: Sequence[int]) -> NDArray[np.int64]:
    """int64 [E]: copies that fill `num_slots` slots in all; counts: int64 [E].

    steps: numbers of copies that an expert may have, increasing from 1 to the number of ranks. The expert with most
    pairs per copy that can be raised to its next step with the slots left is raised, until none can; then single copies
    fill what is left.
    """
    copies = np.ones(len(counts), dtype=np.int64)
    step = np.asarray([*steps, steps[-1]], dtype=np.int64)
    level = np.zeros(len(counts), dtype=np.int64)
    free = num_slots - len(counts)
    while free > 0:
        cost = step[level + 1] - copies
        can_rise = (cost > 0) & (cost <= free)
        if not can_rise.any():
            break
        hottest = int(np.where(can_rise, counts / copies, -1.0).argmax())
        free -= int(cost[hottest])
        level[hottest] += 1
        copies[hottest] = step[level[hottest]]
    for _ in range(free):
        copies[np.argmax(np.where(copies < steps[-1], counts / copies, -1.0))] += 1
    return copies


def divisors(number: int) -> list[int]:
    """The divisors of a positive whole number, increasing."""
    return [part for part in range(1, number + 1) if number % part == 0]
