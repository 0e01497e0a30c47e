"""The checker: a good plan passes, every rule catches the plan that breaks it, and the figures are right."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from specmoe.errors import InfeasibleError
from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.baselines.linear import linear
from specmoe.placement.check import check_plan, relative_load
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

L, E, K, V, R = 2, 8, 2, 6, 4
LINKS: dict[str, Any] = {"intra_node_gb_per_s": 400.0, "inter_node_gb_per_s": 50.0}


def random_profile() -> RoutingProfile:
    rng = np.random.default_rng(0)
    ids = rng.random((80, L, E)).argsort(axis=-1)[..., :K].astype(np.uint8)
    return RoutingProfile(
        layer_ids=np.array([3, 4], dtype=np.int32),
        expert_counts=np.stack([np.bincount(ids[:, layer].ravel(), minlength=E) for layer in range(L)]),
        num_logical_experts=E,
        top_k=K,
        num_tokens=80,
        vocab_size=V,
        sample=RoutingSample(expert_ids=ids),
    )


def good_plan(attention: str = "dp", **changes: Any) -> PlacementPlan:
    """EPLB's, one extra slot a rank, with the tables of its attention."""
    topology = Topology(ranks_per_node=(2, 2), **LINKS)
    plan = eplb(random_profile(), topology, SolveOptions(attention=attention, extra_slots=1))
    tables: dict[str, Any] = {"token_affinity": np.zeros((V, R), dtype=np.float16)}
    if attention == "tp":
        ranks = np.full((L, V), -1, dtype=np.int16)
        tables = {"token_to_rank": ranks, "token_confidence": np.ones((L, V), dtype=np.float16)}
    return replace(plan, **(tables | changes))


def broken(plan: PlacementPlan, name: str, index: Any, value: Any) -> PlacementPlan:
    """`plan` with one entry of one tensor changed, past the plan's own checks."""
    tensor = getattr(plan, name).copy()
    tensor[index] = value
    return unchecked(plan, **{name: tensor})


def unchecked(plan: PlacementPlan, **changes: Any) -> PlacementPlan:
    changed = copy.copy(replace(plan))
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def rules_broken(plan: PlacementPlan, **arguments: Any) -> set[str]:
    return {violation.rule for violation in check_plan(plan, random_profile(), **arguments).violations}


@pytest.mark.parametrize("attention", ["dp", "tp"])
def test_a_good_plan_breaks_no_rule(attention: str) -> None:
    report = check_plan(good_plan(attention), random_profile(), extra_slots=1, max_imbalance=2)
    assert report.violations == ()
    assert report.is_legal
    report.require_legal()


@pytest.mark.parametrize(
    ("name", "index", "value", "rule"),
    [
        ("physical_to_logical", (0, 0), E, "range"),
        ("dispatch_slot", (0, 0, 0), -1, "range"),
        ("rank_of_physical", -1, R, "range"),
        ("layer_ids", 1, 3, "range"),
        ("rank_of_physical", 0, 1, "slots"),
        ("rank_of_physical", 2, 1, "slots"),
    ],
)
def test_a_value_out_of_range_or_a_slot_out_of_place_is_caught(name: str, index: Any, value: int, rule: str) -> None:
    assert rules_broken(broken(good_plan(), name, index, value)) >= {rule}


def test_a_tensor_of_the_wrong_shape_is_caught() -> None:
    plan = good_plan()
    assert rules_broken(unchecked(plan, dispatch_slot=plan.dispatch_slot[:, :2])) == {"range"}


def test_the_number_of_slots_is_what_was_asked_for() -> None:
    assert rules_broken(good_plan(), extra_slots=0) == {"slots"}
    assert rules_broken(good_plan(), extra_slots=2) == {"slots"}
    by_topology = replace(good_plan(), topology=Topology(ranks_per_node=(2, 2), slots=(3, 3, 3, 4)))
    assert rules_broken(by_topology) == {"slots"}


def test_an_expert_without_a_slot_is_caught() -> None:
    plan = good_plan()
    row = plan.physical_to_logical[0]
    alone = np.flatnonzero(np.bincount(row) == 1)[0]
    slot = int(np.flatnonzero(row == alone)[0])
    rank_experts = row[plan.rank_of_physical == plan.rank_of_physical[slot]]
    other = next(expert for expert in range(E) if expert not in rank_experts)
    report = check_plan(broken(plan, "physical_to_logical", (0, slot), other))
    assert f"layer 3: no slot holds the experts [{alone}]" in [violation.message for violation in report.violations]


def test_twins_on_a_rank_are_caught() -> None:
    plan = good_plan()
    row = plan.physical_to_logical[1]
    slot = int(np.flatnonzero(np.bincount(row)[row] > 1)[0])
    first = int(plan.slot_offsets[plan.rank_of_physical[slot]])
    twin = row[first if slot != first else first + 1]
    report = check_plan(broken(plan, "physical_to_logical", (1, slot), twin))
    rank = plan.rank_of_physical[slot]
    messages = [violation.message for violation in report.violations]
    assert f"layer 4: rank {rank} holds expert {twin} more than once" in messages


def test_a_dispatch_to_another_experts_slot_is_caught() -> None:
    plan = good_plan()
    wrong = (int(plan.dispatch_slot[0, 1, 2]) + 1) % plan.num_physical_experts
    report = check_plan(broken(plan, "dispatch_slot", (0, 1, 2), wrong))
    assert [violation.message for violation in report.violations][:1] == [
        "layer 3: rank 1 dispatches expert 2 to a slot of another expert"
    ]


def test_a_dispatch_that_passes_by_the_own_copy_is_caught() -> None:
    plan = good_plan()
    expert = int(np.flatnonzero(plan.holds[0].sum(axis=0) > 1)[0])
    rank, other = np.flatnonzero(plan.holds[0, :, expert])[:2]
    slot = plan.dispatch_slot[0, other, expert]
    report = check_plan(broken(plan, "dispatch_slot", (0, rank, expert), slot))
    assert [violation.message for violation in report.violations] == [
        f"layer 3: rank {rank} holds expert {expert} but dispatches it elsewhere"
    ]


@pytest.mark.parametrize(
    ("attention", "changes"),
    [
        ("tp", {"token_to_rank": np.full((L, V), R, dtype=np.int16)}),
        ("tp", {"token_confidence": np.full((L, V), 1.5, dtype=np.float16)}),
        ("tp", {"token_confidence": np.full((L, V), np.nan, dtype=np.float16)}),
        ("tp", {"token_confidence": None}),
        ("tp", {"token_to_rank": np.zeros((L + 1, V), dtype=np.int16)}),
        ("tp", {"token_affinity": np.zeros((V, R), dtype=np.float16)}),
        ("dp", {"token_affinity": np.zeros((V, R + 1), dtype=np.float16)}),
        ("dp", {"token_affinity": np.zeros((V + 1, R), dtype=np.float16)}),
        ("dp", {"token_affinity": np.full((V, R), np.inf, dtype=np.float16)}),
        ("dp", {"token_to_rank": np.zeros((L, V), dtype=np.int16)}),
    ],
    ids=[
        "no such rank",
        "too sure",
        "not a number",
        "half a table",
        "too many layers",
        "affinity in tp",
        "too many ranks",
        "another vocabulary",
        "infinite",
        "table in dp",
    ],
)
def test_a_table_that_cannot_be_is_caught(attention: str, changes: dict[str, Any]) -> None:
    assert rules_broken(unchecked(good_plan(attention), **changes)) == {"tables"}


def test_a_plan_of_another_model_is_caught() -> None:
    assert rules_broken(unchecked(good_plan(), layer_ids=np.array([3, 5], dtype=np.int32))) == {"model"}


def test_a_layer_over_the_load_cap_is_caught() -> None:
    plan = linear(random_profile(), Topology.single_node(R), SolveOptions())
    report = check_plan(plan, random_profile())
    assert report.load_of_rank is not None
    heaviest = float(report.load_of_rank.max())
    assert rules_broken(plan, max_imbalance=heaviest) == set()
    assert rules_broken(plan, max_imbalance=heaviest - 0.001) == {"load"}


def test_load_is_taken_over_speed() -> None:
    assert relative_load(np.array([30.0, 10.0]), np.array([3.0, 1.0])).tolist() == [1, 1]
    assert relative_load(np.array([20.0, 20.0]), np.array([3.0, 1.0])) == pytest.approx([2 / 3, 2])
    even = linear(random_profile(), Topology.single_node(R), SolveOptions())
    slow_rank = replace(even, topology=Topology(ranks_per_node=(R,), relative_speed=(1.0, 1.0, 1.0, 0.5)))
    assert rules_broken(even, max_imbalance=1.5) == set()
    assert rules_broken(slow_rank, max_imbalance=1.5) == {"load"}


def test_the_load_of_a_counts_only_profile_follows_the_dispatch_table() -> None:
    profile = replace(random_profile(), sample=None)
    plan = good_plan()
    report = check_plan(plan, profile, max_imbalance=2)
    assert report.metrics is None
    assert report.load_of_rank is not None
    expected = [0.0] * R
    for rank in range(R):
        for expert in range(E):
            expected[plan.rank_of_physical[plan.dispatch_slot[1, rank, expert]]] += profile.expert_counts[1, expert]
    assert report.load_of_rank[1] == pytest.approx(np.array(expected) / np.mean(expected))
    assert "load" in {v.rule for v in check_plan(plan, profile, max_imbalance=1.0).violations}


def test_the_objective_and_the_metrics_are_recomputed() -> None:
    profile, plan = random_profile(), good_plan()
    report = check_plan(plan, profile)
    mean = mean_metrics(measure_plan(plan, profile.require_sample("a test")))
    assert report.metrics == mean
    assert report.objective == pytest.approx(mean.remote_copies_per_token + 7 * mean.internode_copies_per_token)


def test_a_wrong_objective_is_caught_on_the_plans_own_profile_only() -> None:
    plan = good_plan()
    right = check_plan(plan, random_profile()).objective
    assert right is not None
    assert rules_broken(replace(plan, objective=right)) == set()
    assert rules_broken(replace(plan, objective=right + 0.001)) == {"objective"}
    assert rules_broken(replace(plan, objective=right + 0.001, profile_fingerprint="another")) == set()


def test_a_bound_above_the_objective_is_caught() -> None:
    plan = replace(good_plan(), profile_fingerprint=None)
    assert rules_broken(replace(plan, objective=1.5, bound=1.5)) == set()
    assert rules_broken(replace(plan, objective=1.5, bound=1.6)) == {"bound"}


def test_expert_groups_must_stay_together() -> None:
    plan = linear(random_profile(), Topology.single_node(R), SolveOptions())
    groups_moved = plan.physical_to_logical[:, [4, 5, 7, 6, 0, 3, 2, 1]]
    rebuilt = np.argsort(groups_moved, axis=1).astype(np.int32)[:, None, :].repeat(R, axis=1)
    moved = replace(plan, physical_to_logical=groups_moved, dispatch_slot=rebuilt)
    assert rules_broken(moved, expert_groups=2) == set()
    assert rules_broken(moved, expert_groups=4) == {"groups"}
    assert rules_broken(moved, expert_groups=3) == {"groups"}
    assert rules_broken(good_plan(), expert_groups=2) == {"groups"}


def test_an_illegal_plan_is_refused_with_its_first_violation() -> None:
    report = check_plan(unchecked(good_plan(), layer_ids=np.array([3, 5], dtype=np.int32)), random_profile())
    with pytest.raises(InfeasibleError, match="the plan is not legal, rule 'model': plan given is for another model"):
        report.require_legal()
