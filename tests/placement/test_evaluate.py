"""Evaluation: its JSON, its baselines, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.errors import ArtifactError, MismatchError, UsageError
from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.baselines.linear import linear
from specmoe.placement.evaluate import evaluate
from specmoe.placement.metrics import METRIC_NAMES, mean_metrics, measure_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.step_time import StepModel
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

L, E, K, V = 3, 10, 3, 20
RULES = ("drop", "reroute")


def random_profile(seed: int = 0, num_tokens: int = 60) -> RoutingProfile:
    rng = np.random.default_rng(seed)
    popularity = rng.random((L, E)) ** 3
    ids = (rng.random((num_tokens, L, E)) * popularity).argsort(axis=-1)[..., -K:].astype(np.uint8)
    return RoutingProfile(
        layer_ids=np.array([1, 2, 4], dtype=np.int32),
        expert_counts=np.stack([np.bincount(ids[:, layer].ravel(), minlength=E) for layer in range(L)]),
        num_logical_experts=E,
        top_k=K,
        num_tokens=num_tokens,
        vocab_size=V,
        sample=RoutingSample(
            expert_ids=ids,
            token_ids=rng.integers(0, V, num_tokens).astype(np.int32),
            request_ids=np.repeat(np.arange(num_tokens // 5), 5).astype(np.int32),
        ),
        model_fingerprint="model",
    )


def plan_for(profile: RoutingProfile, ep_size: int = 4, **options: Any) -> PlacementPlan:
    return eplb(profile, Topology.single_node(ep_size), SolveOptions(**options))


def test_the_json_has_a_result_per_plan_and_baseline_with_every_metric() -> None:
    profile = random_profile()
    plan = plan_for(profile)
    value = json.loads(json.dumps(evaluate({"my plan": plan}, profile).to_json()))
    assert [result["name"] for result in value["results"]] == ["my plan", "linear", "round_robin", "eplb"]
    for result in value["results"]:
        assert set(result) == {"name", "mean", "layers"}
        assert set(result["mean"]) == set(METRIC_NAMES)
        assert [row["layer_id"] for row in result["layers"]] == [1, 2, 4]
        assert all(set(row) == {"layer_id", *METRIC_NAMES} for row in result["layers"])
    assert value["trace"]["num_tokens"] == 60
    assert value["trace"]["num_requests"] == 12
    assert value["results"][0]["mean"] == mean_metrics(measure_plan(plan, profile.require_sample("a test"))).to_json()


def test_linear_has_no_replicas_and_eplb_the_slots_of_the_plan() -> None:
    profile = random_profile()
    evaluation = evaluate([plan_for(profile, extra_slots=1)], profile)
    assert evaluation.result("linear").plan.num_physical_experts == E
    assert evaluation.result("round_robin").plan.num_physical_experts == E
    assert np.bincount(evaluation.result("eplb").plan.rank_of_physical).tolist() == [4, 4, 4, 4]


def test_eplb_is_fitted_to_the_trace_that_it_is_judged_on() -> None:
    fit, judged = random_profile(0), random_profile(1)
    evaluation = evaluate({"fitted elsewhere": plan_for(fit)}, judged)
    expected = plan_for(judged).physical_to_logical
    np.testing.assert_array_equal(evaluation.result("eplb").plan.physical_to_logical, expected)
    assert evaluation.results[0].mean.load_imbalance > evaluation.results[-1].mean.load_imbalance


def test_baselines_have_the_plans_attention_and_nodes_but_no_tables() -> None:
    profile = random_profile()
    tables = {
        "token_to_rank": np.zeros((L, V), dtype=np.int16),
        "token_confidence": np.ones((L, V), dtype=np.float16),
    }
    topology = Topology(ranks_per_node=(2, 2))
    plan = replace(linear(profile, topology, SolveOptions(attention="tp", replica_choice="cover")), **tables)
    for result in evaluate(plan, profile).results[1:]:
        assert result.baseline
        assert (result.plan.attention, result.plan.topology, result.plan.replica_choice) == ("tp", topology, "static")
        assert result.plan.token_to_rank is None


def test_plans_of_another_setting_bring_their_own_baselines() -> None:
    profile = random_profile()
    plans = {
        "a": plan_for(profile),
        "b": plan_for(profile, extra_slots=1),
        "c": plan_for(profile, attention="tp"),
        "d": plan_for(profile),
        "e": plan_for(profile, ep_size=2),
    }
    names = [result.name for result in evaluate(plans, profile).results if result.baseline]
    assert names == [
        "linear",
        "round_robin",
        "eplb",
        "eplb (4 ranks, dp, 16 slots)",
        "linear (4 ranks, tp, 10 slots)",
        "round_robin (4 ranks, tp, 10 slots)",
        "eplb (4 ranks, tp, 12 slots)",
        "linear (2 ranks, dp, 10 slots)",
        "round_robin (2 ranks, dp, 10 slots)",
        "eplb (2 ranks, dp, 10 slots)",
    ]


def test_settings_that_read_the_same_get_different_names() -> None:
    profile = random_profile()
    nodes = [(1, 3), (2, 2), (3, 1)]
    plans = [linear(profile, Topology(ranks_per_node=counts), SolveOptions()) for counts in nodes]
    names = [result.name for result in evaluate(plans, profile).results if result.baseline]
    assert len(set(names)) == len(names) == 9


def test_plans_and_profiles_may_be_paths(tmp_path: Path) -> None:
    profile = random_profile()
    profile.save(tmp_path / "trace")
    plan_for(profile).save(tmp_path / "plan")
    names = [result.name for result in evaluate(tmp_path / "plan", tmp_path / "trace").results]
    assert names[0] == str(tmp_path / "plan")
    seen: list[str] = []
    evaluate([str(tmp_path / "plan")], str(tmp_path / "trace"), on_result=seen.append)
    assert seen == names


def test_a_plan_without_a_path_is_named_after_its_method() -> None:
    profile = random_profile()
    assert evaluate(replace(plan_for(profile), method="by hand"), profile).results[0].name == "by hand"


def test_a_name_that_is_not_there_is_refused() -> None:
    profile = random_profile()
    with pytest.raises(UsageError, match="there is no result named 'other'"):
        evaluate(plan_for(profile), profile).result("other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_ids": np.array([1, 2, 3], dtype=np.int32)}, "its layer ids are"),
        ({"num_logical_experts": 11, "expert_counts": np.zeros((L, 11), dtype=np.int64)}, "its experts per layer are"),
        ({"model_fingerprint": "another"}, "the model fingerprints are model and another"),
    ],
    ids=["layers", "experts", "fingerprint"],
)
def test_a_plan_of_another_model_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    profile = random_profile()
    with pytest.raises(MismatchError, match=f"plan p is for another model than the profile: {message}"):
        evaluate({"p": plan_for(profile)}, replace(profile, **changes))


def test_a_plan_for_another_top_k_is_refused() -> None:
    profile = random_profile()
    with pytest.raises(MismatchError, match="its experts per token are 2, the profile's 3"):
        evaluate({"p": replace(plan_for(profile), top_k=2)}, profile)


def test_fingerprints_are_compared_only_where_both_are_known() -> None:
    profile = random_profile()
    assert evaluate(replace(plan_for(profile), model_fingerprint=None), profile).results
    assert evaluate(plan_for(profile), replace(profile, model_fingerprint=None)).results


def test_a_profile_of_counts_alone_is_refused() -> None:
    profile = random_profile()
    with pytest.raises(ArtifactError, match="evaluating a plan needs the routing of single tokens"):
        evaluate(plan_for(profile), replace(profile, sample=None))


def test_no_plan_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no plan to evaluate"):
        evaluate([], random_profile())


def test_something_that_is_no_plan_is_refused() -> None:
    with pytest.raises(UsageError, match="a PlacementPlan or the path of a plan file was expected"):
        evaluate([3], random_profile())  # type: ignore[list-item]


def test_capacity_outlooks_are_told_for_every_placement_where_asked_for() -> None:
    profile = random_profile()
    sample = profile.require_sample("a test")
    gates = np.full(sample.expert_ids.shape, 0.5, dtype=np.float16)
    with_gates = replace(profile, sample=replace(sample, gate_weights=gates))
    value = json.loads(json.dumps(evaluate(plan_for(profile), with_gates, capacity=[1.0, 2.0]).to_json()))
    for result in value["results"]:
        bounds = [(bound["factor"], bound["level"], bound["overflow"]) for bound in result["capacity"]]
        assert bounds == [(f, level, rule) for f in (1, 2) for level in ("expert", "device") for rule in RULES]
        assert [layer["layer_id"] for layer in result["capacity"][0]["layers"]] == [1, 2, 4]
        assert result["capacity"][0]["mean"]["lost_pair_rate"] > 0


def test_a_capacity_outlook_of_a_trace_without_gate_weights_is_refused() -> None:
    profile = random_profile()
    with pytest.raises(ArtifactError, match="a capacity outlook needs gate weights"):
        evaluate(plan_for(profile), profile, capacity=[1.0])


def test_a_modelled_step_is_told_for_every_placement_where_asked_for() -> None:
    profile = random_profile()
    links = Topology(ranks_per_node=(4,), intra_node_gb_per_s=100.0)
    plan = eplb(profile, links, SolveOptions())
    value = json.loads(json.dumps(evaluate(plan, profile, step_model=StepModel(row_bytes=100)).to_json()))
    for result in value["results"]:
        layers = result["modelled_step"]["layers"]
        assert [layer["layer_id"] for layer in layers] == [1, 2, 4]
        mean = sum(layer["step_us"] for layer in layers) / 3
        assert result["modelled_step"]["mean"]["step_us"] == pytest.approx(mean)
    assert "modelled_step" not in evaluate(plan, profile).to_json()["results"][0]
