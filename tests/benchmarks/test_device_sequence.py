"""The device-sequence benchmark: which rank a token needs, what the sequence says, and who is believed."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from specmoe.placement.baselines.linear import linear
from specmoe.placement.options import SolveOptions
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    yield import_module("device_sequence")
    sys.path.pop(0)


def test_a_token_needs_the_rank_that_holds_most_of_its_experts(benchmark: ModuleType) -> None:
    sample = RoutingSample(expert_ids=np.array([[[0, 2, 3]], [[0, 1, 3]], [[5, 4, 0]]], dtype=np.uint8))
    profile = RoutingProfile(
        layer_ids=np.zeros(1, dtype=np.int32),
        expert_counts=np.ones((1, 6), dtype=np.int64),
        num_logical_experts=6,
        top_k=3,
        num_tokens=3,
    )
    plan = linear(profile, Topology.single_node(3), SolveOptions(attention="tp"))
    assert benchmark.needed_ranks(plan, sample).tolist() == [[1, 0, 2]]


def test_the_sequence_says_what_followed_the_same_two_ranks_most_often(benchmark: ModuleType) -> None:
    fit = np.array([[0, 0, 0, 1], [1, 1, 1, 1], [2, 2, 0, 0]])
    now = np.array([[0, 1, 2], [1, 1, 2], [9, 9, 9]])
    guess = benchmark.sequence_guess(fit, now, 2, 3)
    assert guess.rank.tolist() == [2, 0, 0]
    assert guess.sure == pytest.approx([3 / 6, 2 / 4, 1 / 3], abs=1e-3)
    assert benchmark.sequence_guess(fit, now, 1, 3).rank.tolist() == [-1, -1, -1]


def test_the_surer_guess_is_believed(benchmark: ModuleType) -> None:
    def guess(ranks: list[int], sure: list[float]) -> object:
        return benchmark.Guess(rank=np.array(ranks, dtype=np.int16), sure=np.array(sure, dtype=np.float16))

    both = benchmark.surer(guess([0, 0, 0], [0.25, 0.5, 0.75]), guess([1, 1, 1], [0.5, 0.5, 0.5]))
    assert both.rank.tolist() == [1, 0, 0]
    assert both.sure.tolist() == [0.5, 0.5, 0.75]


def test_groups_are_drawn_towards_the_mean_and_unseen_ones_are_the_mean(benchmark: ModuleType) -> None:
    values = np.array([[4.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    means = benchmark.shrunk_means(values, np.array([7, 3, 3]), np.array([3, 7, 5, 9]), 1.0)
    mean = values.mean(axis=0)
    assert means == pytest.approx(np.array([(2 * values[1] + mean) / 3, (values[0] + mean) / 2, mean, mean]))


def test_what_id_and_sequence_say_is_multiplied(benchmark: ModuleType) -> None:
    # One expert a token and a rank an expert: an id means either of its ranks, the last two ranks decide which.
    profile = RoutingProfile(
        layer_ids=np.arange(3, dtype=np.int32),
        expert_counts=np.ones((3, 4), dtype=np.int64),
        num_logical_experts=4,
        top_k=1,
        num_tokens=4,
    )
    plan = linear(profile, Topology.single_node(4), SolveOptions(attention="tp"))
    last, first = np.repeat([0, 1, 2, 3], 50), np.repeat([0, 1, 0, 1], 50)
    experts = np.stack([first, first, last], axis=1)[:, :, None].astype(np.uint8)
    fit = RoutingSample(expert_ids=experts, token_ids=np.repeat([0, 0, 1, 1], 50).astype(np.int32))
    needed = benchmark.needed_ranks(plan, fit)
    at_last = benchmark.joined_guess(plan, fit, fit, (needed, needed), 2)
    assert at_last.rank.tolist() == last.tolist()
    assert at_last.sure.min() > 0.6
    assert benchmark.joined_guess(plan, fit, fit, (needed, needed), 1).rank.tolist() == [0] * 50 + [0] * 50 + [0] * 100
