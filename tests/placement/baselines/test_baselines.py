"""The baselines: known answers, and that every one is a legal plan that fills its slots."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.baselines.build import even_sizes
from specmoe.placement.baselines.eplb import eplb, eplb_ranks
from specmoe.placement.baselines.linear import linear, linear_ranks
from specmoe.placement.baselines.round_robin import round_robin, round_robin_ranks
from specmoe.placement.options import SolveOptions
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

BASELINES = {"linear": linear, "round_robin": round_robin, "eplb": eplb}


def counts_only_profile(counts: Any, top_k: int = 2) -> RoutingProfile:
    counts = np.asarray(counts, dtype=np.int64)
    return RoutingProfile(
        layer_ids=np.arange(len(counts), dtype=np.int32),
        expert_counts=counts,
        num_logical_experts=counts.shape[1],
        top_k=top_k,
        num_tokens=int(counts[0].sum()) // top_k,
    )


def slots(*sizes: int) -> Any:
    return np.array(sizes, dtype=np.int32)


@pytest.mark.parametrize(
    ("num_experts", "sizes", "expected"),
    [
        (8, (2, 2, 2, 2), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (10, (3, 3, 3, 3), [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]),
        (6, (1, 4, 4), [[0], [1, 2, 3], [4, 5]]),
    ],
    ids=["even", "two left over", "a small rank"],
)
def test_linear_runs_are_equal_with_the_rest_on_the_first_ranks(
    num_experts: int, sizes: tuple[int, ...], expected: list[list[int]]
) -> None:
    assert linear_ranks(num_experts, slots(*sizes)) == expected


@pytest.mark.parametrize(
    ("num_experts", "sizes", "expected"),
    [
        (8, (2, 2, 2, 2), [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (10, (3, 3, 3, 3), [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]),
        (6, (1, 4, 4), [[0], [1, 3, 5], [2, 4]]),
    ],
    ids=["even", "two left over", "a small rank"],
)
def test_round_robin_puts_expert_e_on_rank_e_modulo_the_ranks(
    num_experts: int, sizes: tuple[int, ...], expected: list[list[int]]
) -> None:
    assert round_robin_ranks(num_experts, slots(*sizes)) == expected


def test_eplb_gives_the_answer_of_its_published_example() -> None:
    first = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]
    second = [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]
    answers = [eplb_ranks(np.array(counts), slots(*[2] * 8), (4, 4), 4) for counts in (first, second)]
    assert answers == [
        [[5, 6], [5, 7], [8, 4], [3, 4], [10, 9], [10, 2], [0, 1], [11, 1]],
        [[7, 10], [6, 8], [6, 11], [8, 9], [2, 4], [5, 1], [5, 0], [3, 1]],
    ]


def test_eplb_keeps_a_group_on_one_node_only_where_the_groups_divide_among_the_nodes() -> None:
    counts = np.array([9, 9, 9, 9, 1, 1, 1, 1])
    by_group = eplb_ranks(counts, slots(2, 2, 2, 2), (2, 2), 2)
    assert sorted(by_group[0] + by_group[1]) == [0, 1, 2, 3]
    without_groups = eplb_ranks(counts, slots(2, 2, 2, 2), (2, 2), 1)
    assert [counts[rank].sum() for rank in without_groups] == [10, 10, 10, 10]


def test_eplb_copies_the_hottest_expert_onto_every_rank_at_most_once() -> None:
    held = eplb_ranks(np.array([100, 3, 2, 1]), slots(2, 2, 2, 2), (4,), 1)
    assert [rank.count(0) for rank in held] == [1, 1, 1, 1]
    assert sorted(expert for rank in held for expert in rank if expert) == [1, 1, 2, 3]


def test_eplb_exchanges_experts_where_only_a_twins_rank_has_room() -> None:
    # Expert 1 is copied; its copies are as light as the others and come first and last.
    held = eplb_ranks(np.array([1, 2, 1]), slots(2, 2), (2,), 1)
    assert sorted(sorted(rank) for rank in held) == [[0, 1], [1, 2]]


def test_eplb_gives_a_slot_that_no_copy_of_the_hottest_fits_to_the_next() -> None:
    held = eplb_ranks(np.array([8, 6, 3]), slots(1, 2, 3), (3,), 1)
    assert [len(set(rank)) for rank in held] == [1, 2, 3]


@pytest.mark.parametrize("name", BASELINES)
def test_slots_that_experts_leave_free_hold_replicas(name: str) -> None:
    counts = np.arange(1, 21).reshape(2, 10)
    plan = BASELINES[name](counts_only_profile(counts), Topology.single_node(4), SolveOptions(extra_slots=1))
    assert np.bincount(plan.rank_of_physical).tolist() == [4, 4, 4, 4]
    assert (plan.method, plan.attention, plan.replica_choice) == (name, "dp", "static")


def test_linear_replicas_follow_each_other_over_the_ranks() -> None:
    profile = counts_only_profile(np.ones((1, 10)))
    plan = linear(profile, Topology.single_node(4), SolveOptions(extra_slots=0))
    assert plan.physical_to_logical.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 9, 1]]


def test_options_and_fingerprints_go_into_the_plan() -> None:
    profile = counts_only_profile(np.ones((1, 4)))
    options = SolveOptions(attention="tp", replica_choice="cover", seed=7)
    plan = round_robin(profile, Topology.single_node(2), options)
    assert (plan.attention, plan.replica_choice, plan.seed) == ("tp", "cover", 7)
    assert plan.profile_fingerprint == profile.fingerprint


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_slots_and_counts_give_a_legal_plan_with_every_slot_filled(data: st.DataObject) -> None:
    ranks_per_node = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    R = sum(ranks_per_node)
    E = data.draw(st.integers(R, 12))
    sizes = data.draw(st.lists(st.integers(1, E), min_size=R, max_size=R).filter(lambda sizes: sum(sizes) >= E))
    counts = data.draw(st.lists(st.integers(0, 20), min_size=2 * E, max_size=2 * E))
    profile = counts_only_profile(np.array(counts).reshape(2, E), top_k=1)
    groups = data.draw(st.sampled_from([None, *[g for g in range(1, E + 1) if E % g == 0]]))
    options = SolveOptions(expert_groups=groups)
    for solver in BASELINES.values():
        plan = solver(profile, Topology(ranks_per_node=tuple(ranks_per_node), slots=tuple(sizes)), options)
        assert np.bincount(plan.rank_of_physical, minlength=R).tolist() == sizes


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data())
def test_even_sizes_differ_by_one_except_where_slots_end(sizes: list[int], data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(0, sum(sizes)))
    dealt = even_sizes(num_experts, slots(*sizes))
    assert sum(dealt) == num_experts
    assert all(size <= room for size, room in zip(dealt, sizes, strict=True))
    unlimited = [size for size, room in zip(dealt, sizes, strict=True) if size < room]
    assert max(unlimited, default=0) - min(unlimited, default=0) <= 1
    assert sorted(unlimited, reverse=True) == unlimited
