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
