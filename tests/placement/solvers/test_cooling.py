"""Rounds of annealing: all of them without a time limit, fewer but down to the coldest with one."""

import numpy as np
import pytest

from specmoe.placement.solvers import cooling as module
from specmoe.placement.solvers.cooling import cooling


class Clock:
    """Seconds that pass only in rounds."""

    def __init__(self, limit):
        self.now, self.limit = 0.0, limit

    def monotonic(self):
        return self.now

    def left(self):
        return max(0.0, self.limit - self.now)


@pytest.mark.parametrize("steps", [3, 7, 10, 20])
def test_without_a_limit_all_rounds_come_in_order_in_even_groups(steps):
    groups = [group.tolist() for group in cooling(20, steps, lambda: None)]
    assert groups == [group.tolist() for group in np.array_split(np.arange(20), steps)]


@pytest.mark.parametrize(("limit", "hottest", "rounds"), [(100.0, 0, 20), (17.0, 1, 10), (8.0, 19, 1), (6.0, None, 0)])
def test_under_a_limit_as_many_rounds_as_fit_end_with_the_coldest(limit, hottest, rounds, monkeypatch):
    clock = Clock(limit)
    monkeypatch.setattr(module, "time", clock)
    carried_out = []
    for group in cooling(20, 10, clock.left):
        clock.now += len(group)
        carried_out += group.tolist()
    trial, kept = carried_out[0], carried_out[1:]
    assert trial == 19
    assert len(kept) == rounds
    assert kept == sorted(kept)
    if kept:
        assert (kept[0], kept[-1]) == (hottest, 19)
    # What is left is for settling.
    assert clock.left() >= min(6.0, limit - 1.0)


def test_rounds_that_turn_out_slower_are_left_out_on_the_way(monkeypatch):
    clock = Clock(40.0)
    monkeypatch.setattr(module, "time", clock)
    carried_out = []
    for group in cooling(20, 10, clock.left):
        clock.now += len(group) * (1.0 if group[0] == 19 or not carried_out else 2.0)
        carried_out += group.tolist()
    assert 10 < len(carried_out) < 20
    assert carried_out[-1] == 19
    assert clock.left() >= 6.0
