"""The fair dispatch table: own copy first, then the node's, then an even share."""

import numpy as np

from specmoe.placement.fair_dispatch import fair_dispatch


def table(experts: list[int], ranks: list[int], nodes: list[int], counts: list[int]) -> list[list[int]]:
    """Of one layer: the rank that each rank uses, [R][E]."""
    rank_of = np.array(ranks, dtype=np.int32)
    args = np.array([experts], dtype=np.int32), rank_of, np.array(nodes, dtype=np.int32), np.array([counts])
    answer: list[list[int]] = rank_of[fair_dispatch(*args)[0]].tolist()
    return answer


def test_an_expert_with_one_copy_is_served_there() -> None:
    assert table([0, 1], [0, 1], [0, 0], [5, 5]) == [[0, 1], [0, 1]]


def test_a_rank_uses_its_own_copy() -> None:
    answer = table([0, 1, 0, 2], [0, 0, 1, 1], [0, 0], [9, 1, 1])
    assert [row[0] for row in answer] == [0, 1]


def test_a_copy_on_the_same_node_goes_before_all_others() -> None:
    answer = table([0, 1, 0, 2], [0, 1, 2, 3], [0, 0, 1, 1], [4, 1, 1])
    assert [row[0] for row in answer] == [0, 0, 2, 2]


def test_a_node_uses_its_own_copy_even_where_the_other_has_less_to_do() -> None:
    answer = table([0, 1, 2, 0], [0, 1, 2, 3], [0, 0, 0, 1], [4, 1, 1])
    assert [row[0] for row in answer] == [0, 0, 0, 3]


def test_ranks_without_a_copy_are_shared_out_evenly() -> None:
    answer = table([0, 1, 0, 2, 3, 4], [0, 0, 1, 1, 2, 3], [0, 0, 0, 0], [8, 1, 1, 1, 1])
    assert sorted(row[0] for row in answer) == [0, 0, 1, 1]


def test_the_rank_left_over_goes_to_the_copy_on_the_less_loaded_rank() -> None:
    for first, second, expected in ((5, 1, 1), (1, 5, 0)):
        answer = table([0, 1, 0, 2, 3], [0, 0, 1, 1, 2], [0, 0, 0], [3, first, second, 1])
        assert answer[2][0] == expected
