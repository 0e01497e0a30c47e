"""What a heaviest rank must carry at least: never more than the best placement does, and what forces it is named."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.solvers.least_load import least_load


def least(counts: list[int], slots: list[int], speed: list[float]) -> tuple[float, str]:
    bound = least_load(np.array(counts), np.array(slots, dtype=np.int32), np.array(speed))
    return bound.heaviest, bound.reason


@pytest.mark.parametrize(
    ("counts", "slots", "speed", "heaviest", "reason"),
    [
        ([4, 4, 4, 4], [2, 2], [1.0, 1.0], 1.0, "loads have a mean"),
        ([10, 2, 3, 1], [2, 2], [1.0, 1.0], 11 / 8, "expert 0 with the 1 coldest"),
        ([1, 10, 1], [2, 2], [1.0, 1.0], 1.0, "loads have a mean"),
        ([1, 22, 1], [2, 1, 1], [1.0, 1.0, 1.0], 22 / 2 / 8, "expert 1 on 2 ranks"),
        ([5, 1, 2, 3], [2, 2], [1.0, 0.1], 3 / 0.1 / 10, "rank 1 of relative speed 0.1 must hold 2 experts"),
        ([0, 0], [1, 1], [1.0, 1.0], 1.0, "loads have a mean"),
    ],
)
def test_what_forces_the_load_is_named(
    counts: list[int], slots: list[int], speed: list[float], heaviest: float, reason: str
) -> None:
    found, why = least(counts, slots, speed)
    assert found == pytest.approx(heaviest)
    assert reason in why


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_placement_of_single_copies_is_below_it(data: st.DataObject) -> None:
    slots = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    counts = data.draw(st.lists(st.integers(0, 9), min_size=sum(slots), max_size=sum(slots)).filter(any))
    speed = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=len(slots), max_size=len(slots)))
    ranks = np.repeat(np.arange(len(slots)), slots)
    loads = [
        (np.bincount(order, weights=counts, minlength=len(slots)) / speed).max()
        for order in set(itertools.permutations(ranks.tolist()))
    ]
    best = min(loads) / (sum(counts) / sum(speed))
    assert least(counts, slots, speed)[0] <= best + 1e-9
