"""How much search a layer gets: all of it while slots are few, less with the square of many."""

import pytest

from specmoe.placement.solvers.effort import affordable_kicks, annealing_share, meeting_pairs


@pytest.mark.parametrize(("slots", "share"), [(40, 1.0), (128, 1.0), (256, 0.25), (1280, 0.01)])
def test_annealing_shrinks_with_the_pairs_of_slots_past_those_of_128(slots, share):
    assert annealing_share(slots) == pytest.approx(share)


@pytest.mark.parametrize(("slots", "kicks"), [(8, 4), (64, 32), (128, 64), (256, 8), (1280, 0)])
def test_searches_begin_anew_more_often_with_more_slots_while_that_is_affordable(slots, kicks):
    assert affordable_kicks(slots) == kicks


@pytest.mark.parametrize(
    ("slots", "pairs"), [(8, 500), (40, 1500), (49, 2401), (72, 5184), (128, 12_000), (256, 3000), (1280, 1500)]
)
def test_all_pairs_of_slots_meet_while_that_is_affordable(slots, pairs):
    assert meeting_pairs(slots, is_quick=False) == pairs
    assert meeting_pairs(slots, is_quick=True) == (pairs if slots < 49 else min(slots**2, 12_000))
