"""The comparison methods: each minimises what its paper says on a case with a known answer, and every plan is legal."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from specmoe.placement.check import check_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

METHODS = ["sem_moe", "moetuner", "exflow", "occult", "grace"]
L, E, K = 3, 8, 2
BLOCKS = np.array([[0, 3, 5, 6], [1, 2, 4, 7]])


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_the_path() -> Iterator[None]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    yield
    sys.path.pop(0)


def published(name: str) -> ModuleType:
    return import_module(f"published.{name}")


def two_topics() -> RoutingProfile:
    """20 requests of 12 tokens, each of one of two topics; a topic uses one block of four experts, in every layer."""
    rng = np.random.default_rng(0)
    topic = np.repeat(rng.permutation(np.arange(20) % 2), 12)
    within = rng.random((240, L, 4)).argsort(axis=-1)[..., :K]
    ids = BLOCKS[topic[:, None, None], within].astype(np.uint8)
    return RoutingProfile(
        layer_ids=np.arange(L, dtype=np.int32),
        expert_counts=np.stack([np.bincount(ids[:, layer].ravel(), minlength=E) for layer in range(L)]),
        num_logical_experts=E,
        top_k=K,
        num_tokens=240,
        vocab_size=12,
        sample=RoutingSample(
            expert_ids=ids,
            token_ids=(rng.integers(0, 6, 240) + 6 * topic).astype(np.int32),
            request_ids=np.repeat(np.arange(20), 12).astype(np.int32),
        ),
    )


@pytest.mark.parametrize("attention", ["dp", "tp"])
@pytest.mark.parametrize("method", METHODS)
def test_every_plan_is_legal_and_repeats_itself(method: str, attention: str) -> None:
    solver, profile = getattr(published(method), method), two_topics()
    options = SolveOptions(attention=attention, extra_slots=1 if method == "grace" else 0)
    plan = solver(profile, Topology.single_node(2), options)
    check_plan(plan, profile, extra_slots=options.extra_slots).require_legal()
    assert plan.digest == solver(profile, Topology.single_node(2), options).digest


@pytest.mark.parametrize("method", ["sem_moe", "exflow", "occult", "grace"])
def test_experts_of_a_topic_share_a_rank(method: str) -> None:
    plan = getattr(published(method), method)(two_topics(), Topology.single_node(2), SolveOptions())
    for row in plan.physical_to_logical:
        assert sorted(sorted(part) for part in np.split(row, 2)) == BLOCKS.tolist()


@pytest.mark.parametrize("attention", ["dp", "tp"])
def test_sem_moe_sends_tokens_to_the_rank_of_their_topic(attention: str) -> None:
    profile = two_topics()
    plan = published("sem_moe").sem_moe(profile, Topology.single_node(2), SolveOptions(attention=attention))
    report = check_plan(plan, profile)
    assert report.metrics is not None
    assert report.metrics.remote_copies_per_token < 0.1


def test_sem_moe_asks_for_token_ids() -> None:
    profile = two_topics()
    sample = replace(profile.require_sample("a test"), token_ids=None)
    with pytest.raises(ValueError, match="token ids"):
        published("sem_moe").sem_moe(replace(profile, sample=sample), Topology.single_node(2), SolveOptions())


def test_an_exchange_is_made_only_for_a_gain_in_affinity() -> None:
    exchange = published("sem_moe")._exchange_if_better
    pairs = np.zeros((4, 4))
    pairs[0, 3] = pairs[3, 0] = pairs[1, 2] = pairs[2, 1] = 1
    none = np.zeros((4, 2))
    groups = np.array([0, 0, 1, 1])
    exchange(groups, 1, 3, pairs, none)
    assert groups.tolist() == [0, 1, 1, 0]
    exchange(groups, 1, 3, pairs, none)
    assert groups.tolist() == [0, 1, 1, 0]
    exchange(groups, 0, 1, np.zeros((4, 4)), np.array([[0, 1], [1, 0], [0, 0], [0, 0]]))
    assert groups.tolist() == [1, 0, 1, 0]


def test_moetuner_balances_equal_groups_exactly() -> None:
    groups = published("moetuner").even_groups(np.array([7, 6, 5, 4, 3, 2, 2, 1]), [4, 4], 5.0, 0)
    loads = [int(np.array([7, 6, 5, 4, 3, 2, 2, 1])[groups == group].sum()) for group in (0, 1)]
    assert loads == [15, 15]
    assert np.bincount(groups).tolist() == [4, 4]


def test_moetuner_gives_groups_the_ranks_with_the_least_heaviest_traffic() -> None:
    rng = np.random.default_rng(1)
    groups = np.arange(4)
    for _ in range(20):
        moves = rng.integers(0, 20, (4, 4)).astype(np.float64)
        ranks = published("moetuner").best_ranks(moves, groups, groups, 4)

        def heaviest(order: Any, traffic: Any = moves) -> float:
            away = np.arange(4)[:, None] != np.asarray(order)[None, :]
            return float(traffic[away].max())

        assert heaviest(ranks) == min(heaviest(order) for order in permutations(range(4)))


def test_exflow_keeps_no_fewer_transitions_than_any_equal_groups_of_a_small_model() -> None:
    exflow = published("exflow")
    rng = np.random.default_rng(2)
    moves = rng.integers(0, 9, (1, 4, 4)).astype(np.float64)
    halves = {tuple(order) for order in permutations([0, 0, 1, 1])}
    best = max(exflow.kept_transitions(moves, np.array([a, b])) for a in halves for b in halves)
    found = [exflow._descend(moves, [2, 2], 2, np.random.default_rng(seed)) for seed in range(exflow.STARTS)]
    assert max(exflow.kept_transitions(moves, groups) for groups in found) == best


def test_occult_grows_a_group_around_the_strongest_pair() -> None:
    pairs = np.zeros((6, 6))
    for first, second, count in ((2, 5, 9), (5, 0, 4), (2, 1, 3), (0, 4, 8)):
        pairs[first, second] = pairs[second, first] = count
    assert published("occult").greedy_groups(pairs, [3, 3]).tolist() == [0, 1, 0, 1, 1, 0]


def test_grace_copies_the_hottest_experts_of_the_heaviest_group() -> None:
    copy = published("grace").copy_hot_experts
    held = copy([[0, 1], [2, 3]], np.array([1, 2, 9, 5]), np.array([3, 3]))
    assert held == [[0, 1, 2], [2, 3, 1]]


def test_counts_of_pairs_and_transitions_are_used_where_the_profile_has_them() -> None:
    profile, groups, exflow = two_topics(), published("groups"), published("exflow")
    from_sample = np.stack([groups.coactivation(profile, layer) for layer in range(L)])
    counts = from_sample.astype(np.int64)
    for layer in range(L):
        np.fill_diagonal(counts[layer], profile.expert_counts[layer])
    moves = exflow.transitions(profile)
    assert moves.sum() == 240 * K * K * (L - 1)
    counted = replace(profile, coactivation_counts=counts, transition_counts=moves.astype(np.int64), sample=None)
    np.testing.assert_array_equal(groups.coactivation(counted, 1), from_sample[1])
    np.testing.assert_array_equal(exflow.transitions(counted), moves)
