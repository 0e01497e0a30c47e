"""The modelled step time: its formula by hand, and its row counts against sets in plain Python."""

from typing import Any

import numpy as np
import pytest

from specmoe.errors import UsageError
from specmoe.placement.baselines.linear import linear
from specmoe.placement.options import SolveOptions
from specmoe.placement.step_time import StepModel, layer_step_time, mean_step_time, step_times
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

NODES: dict[str, Any] = {
    "ranks_per_node": (2, 2),
    "intra_node_gb_per_s": 100.0,
    "inter_node_gb_per_s": 10.0,
    "intra_node_latency_us": 3.0,
    "inter_node_latency_us": 20.0,
}


def layer_time(served_by: list[list[int]], homes: list[int], topology: Topology, **model: Any) -> Any:
    arguments = np.array(served_by, dtype=np.int16), np.array(homes, dtype=np.int32)
    return layer_step_time(*arguments, topology, StepModel(row_bytes=1000, tokens_per_step=len(homes), **model))


def test_rows_within_a_node_take_its_bandwidth_and_latency() -> None:
    time = layer_time([[0, 1], [1, 1], [0, 0]], [0, 0, 0], Topology(**NODES), pair_us=2.0)
    # Two rows of 1,000 bytes at 100,000 bytes a microsecond; rank 0 and rank 1 serve three pairs each.
    assert time.exchange_us == pytest.approx(3 + 2 * 0.01)
    assert time.compute_us == 6
    assert time.step_us == pytest.approx(2 * (3 + 2 * 0.01) + 6)


def test_a_row_to_another_node_is_sent_once_and_passed_on_there() -> None:
    # Both ranks of the other node serve the token: one row between nodes, one within.
    time = layer_time([[2, 3]], [1], Topology(**NODES))
    assert time.exchange_us == pytest.approx(3 + 20 + 0.1)
    # Rank 3 has the home's number on its node: it needs no passing on.
    assert layer_time([[3]], [1], Topology(**NODES)).exchange_us == pytest.approx(20 + 0.1)


def test_all_at_home_is_compute_alone() -> None:
    time = layer_time([[0, 0], [1, 1]], [0, 1], Topology(**NODES), pair_us=0.5)
    assert (time.exchange_us, time.compute_us, time.step_us) == (0, 1, 1)


def test_a_slow_rank_counts_by_its_speed() -> None:
    topology = Topology(**NODES, relative_speed=(1.0, 0.25, 1.0, 1.0))
    assert layer_time([[0], [0], [1]], [0, 0, 1], topology, pair_us=1.0).compute_us == 4


def test_a_step_is_scaled_to_its_number_of_tokens() -> None:
    served_by, homes = np.array([[1], [0]], dtype=np.int16), np.zeros(2, dtype=np.int32)
    model = StepModel(row_bytes=1000, pair_us=1.0, tokens_per_step=200)
    time = layer_step_time(served_by, homes, Topology(**NODES), model)
    assert time.exchange_us == pytest.approx(3 + 100 * 0.01)
    assert time.compute_us == 100


@pytest.mark.parametrize("nodes", [(4,), (2, 2), (1, 3), (3, 1, 2)], ids=str)
def test_rows_are_those_of_the_rule(nodes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(sum(nodes))
    R, T = sum(nodes), 50
    node_of = [node for node, size in enumerate(nodes) for _ in range(size)]
    served_by, homes = rng.integers(0, R, (T, 4)), rng.integers(0, R, T)
    near, far = np.zeros((2, R)), np.zeros((2, R))
    for ranks, home in zip(served_by.tolist(), homes.tolist(), strict=True):
        for node in {node_of[rank] for rank in ranks}:
            there = {rank for rank in ranks if node_of[rank] == node}
            sender = home
            if node != node_of[home]:
                number = home - node_of.index(node_of[home])
                sender = node_of.index(node) + number % nodes[node]
                far[0, home] += 1
                far[1, sender] += 1
            for rank in there - {sender}:
                near[0, sender] += 1
                near[1, rank] += 1
    topology = Topology(ranks_per_node=nodes, intra_node_gb_per_s=1.0, inter_node_gb_per_s=1.0)
    time = layer_time(served_by.tolist(), homes.tolist(), topology)
    assert time.exchange_us == pytest.approx(max(near.max(), far.max()))


def random_profile() -> RoutingProfile:
    ids = np.random.default_rng(0).random((30, 2, 8)).argsort(axis=-1)[..., :2].astype(np.uint8)
    return RoutingProfile(
        layer_ids=np.arange(2, dtype=np.int32),
        expert_counts=np.stack([np.bincount(ids[:, layer].ravel(), minlength=8) for layer in range(2)]),
        num_logical_experts=8,
        top_k=2,
        num_tokens=30,
        sample=RoutingSample(expert_ids=ids),
    )


def test_every_layer_of_a_plan_has_a_time() -> None:
    profile = random_profile()
    sample = profile.require_sample("a test")
    plan = linear(profile, Topology(**NODES), SolveOptions())
    times = step_times(plan, sample, StepModel(row_bytes=4096, pair_us=0.1))
    assert len(times) == 2
    assert mean_step_time(times).step_us == pytest.approx((times[0].step_us + times[1].step_us) / 2)


@pytest.mark.parametrize(
    ("topology", "missing"),
    [
        (Topology(ranks_per_node=(4,)), "intra_node_gb_per_s"),
        (Topology(ranks_per_node=(1, 1, 1, 1)), "inter_node_gb_per_s"),
        (Topology(ranks_per_node=(2, 2)), "inter_node_gb_per_s and intra_node_gb_per_s"),
    ],
    ids=["one node", "one rank a node", "both"],
)
def test_a_topology_without_bandwidths_is_refused(topology: Topology, missing: str) -> None:
    profile = random_profile()
    plan = linear(profile, topology, SolveOptions())
    with pytest.raises(UsageError, match=f"a modelled step time needs {missing} in the plan's topology"):
        step_times(plan, profile.require_sample("a test"), StepModel(row_bytes=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row_bytes": 0}, "row_bytes is 0"),
        ({"row_bytes": 1, "pair_us": -1.0}, "pair_us is -1.0"),
        ({"row_bytes": 1, "tokens_per_step": 0}, "tokens_per_step is 0"),
    ],
    ids=["row", "pair", "tokens"],
)
def test_impossible_models_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StepModel(**arguments)
