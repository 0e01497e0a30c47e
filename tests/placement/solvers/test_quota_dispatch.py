"""Numbers of copies and the dispatch tables made for them."""

import numpy as np
import pytest

from specmoe.placement.solvers.quota_dispatch import quota_dispatch
from specmoe.placement.solvers.replica_counts import divisors, replica_counts


def test_every_copy_serves_its_quota_its_own_rank_first_and_then_its_node() -> None:
    # Expert 0 sits on ranks 0 and 2, for 2 and 3 home ranks; expert 1 on rank 1, for all.
    experts, ranks = np.array([0, 1, 0], dtype=np.int32), np.array([0, 1, 2], dtype=np.int32)
    table = quota_dispatch(experts, np.array([2, 5, 3]), ranks, np.array([0, 0, 1, 1, 1], dtype=np.int32))
    assert table.tolist() == [[0, 1], [0, 1], [2, 1], [2, 1], [2, 1]]


def test_a_node_whose_copies_are_used_up_is_served_by_another() -> None:
    experts, ranks = np.zeros(2, dtype=np.int32), np.array([0, 2], dtype=np.int32)
    table = quota_dispatch(experts, np.array([1, 3]), ranks, np.array([0, 0, 1, 1], dtype=np.int32))
    assert table[:, 0].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("counts", "slots", "steps", "copies"),
    [
        ([100, 30, 20, 10], 8, [1, 2, 4], [4, 2, 1, 1]),
        ([100, 30, 20, 10], 6, [1, 2, 4], [2, 2, 1, 1]),
        ([100, 30, 20, 10], 9, [1, 2, 3, 4], [4, 2, 2, 1]),
        ([9, 1], 3, [1, 3], [2, 1]),
    ],
    ids=["in steps", "a step that does not fit is passed over", "one by one", "what is left goes to the hottest"],
)
def test_the_hottest_per_copy_is_raised_to_its_next_step(
    counts: list[int], slots: int, steps: list[int], copies: list[int]
) -> None:
    assert replica_counts(np.array(counts), slots, steps).tolist() == copies


def test_divisors_increase_from_one_to_the_number() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(7) == [1, 7]
