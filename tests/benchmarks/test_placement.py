"""The table of methods compares copies at equal load."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NUM_EXPERTS = 8


@pytest.fixture
def placement(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import placement

    return placement


def hot_together() -> RoutingProfile:
    """400 one-token requests of two experts; four of the experts work together and do three quarters of the work."""
    rng = np.random.default_rng(0)
    is_hot = rng.random(400) < 0.75
    within = rng.random((400, 4)).argsort(axis=1)[:, :2]
    ids = np.where(is_hot[:, None], 2 * within, 2 * within + 1).astype(np.uint8)[:, None]
    return RoutingProfile(
        layer_ids=np.zeros(1, dtype=np.int32),
        expert_counts=np.bincount(ids.ravel(), minlength=NUM_EXPERTS)[None],
        num_logical_experts=NUM_EXPERTS,
        top_k=2,
        num_tokens=400,
        vocab_size=800,
        sample=RoutingSample(
            expert_ids=ids,
            token_ids=np.where(is_hot, 0, 400).astype(np.int32) + np.arange(400, dtype=np.int32),
            request_ids=np.arange(400, dtype=np.int32),
        ),
    )


def hot_on_one_rank(plan: PlacementPlan) -> PlacementPlan:
    """The same plan with the experts of even numbers on rank 0."""
    held = np.array([[0, 2, 4, 6, 1, 3, 5, 7]], dtype=np.int32)
    slots = np.repeat(np.argsort(held)[:, None], 2, axis=1).astype(np.int32)
    return replace(plan, physical_to_logical=held, dispatch_slot=slots)


def test_auto_is_let_be_as_uneven_as_a_method_that_breaks_the_cap(placement):
    profile = hot_together()
    traces, case = (profile, profile), placement.Case(ranks=2, attention="tp", extra_slots=0)
    uneven = hot_on_one_rank(placement.solve(profile, Topology.single_node(2), method="linear", attention="tp"))
    imbalance = placement.measure_plan(uneven, profile.sample)[0].load_imbalance
    assert imbalance > 1.4
    allowed = placement.auto_as_uneven(uneven, case, traces, 1.05, 0)
    assert 1.4 < allowed.load_imbalance <= imbalance
    even = placement.measure("auto", case, traces, 1.05, 0)
    assert even.as_uneven is None
    assert even.held_out.load_imbalance < 1.1
    assert allowed.remote_copies_per_token < even.held_out.remote_copies_per_token


def test_methods_within_the_cap_are_compared_as_they_are(placement):
    profile = hot_together()
    row = placement.measure(
        "linear", placement.Case(ranks=2, attention="dp", extra_slots=0), (profile, profile), 1.05, 0
    )
    assert row.held_out.load_imbalance < 1.05
    assert row.as_uneven is None
    assert "| auto as uneven |" in placement.markdown([row], about_of(placement))


def about_of(placement):
    return {"fit": "a", "dev": "b", "max_imbalance": 1.05, "seed": 0, "versions": {}, "machine": "m"}
