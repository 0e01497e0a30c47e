"""`solve`: legal plans that beat the baselines on other requests, the same every time, and clear refusals."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from specmoe.errors import UsageError
from specmoe.placement.check import check_plan
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.objective import objective_of
from specmoe.placement.solve import solve
from specmoe.placement.solvers.assignment_rule import simulated_shares
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

LAYERS, EXPERTS, TOP_K, TOPICS, VOCABULARY = 3, 16, 2, 4, 80


def make_profile(seed: int, requests: int = 60) -> RoutingProfile:
    """Requests of one topic each, whose tokens mostly use that topic's experts, hidden in the numbering."""
    rng = np.random.default_rng(seed)
    topic_of_expert = np.stack([np.random.default_rng(layer).permutation(EXPERTS) % TOPICS for layer in range(LAYERS)])
    lengths = rng.integers(20, 60, size=requests)
    request = np.repeat(np.arange(requests), lengths)
    topic = rng.integers(TOPICS, size=requests)[request]
    topic = np.where(rng.random(len(topic)) < 0.15, rng.integers(TOPICS, size=len(topic)), topic)
    tokens = topic * (VOCABULARY // TOPICS) + rng.integers(VOCABULARY // TOPICS, size=len(topic))
    noise = rng.gumbel(size=(len(topic), LAYERS, EXPERTS))
    score = noise + 4.0 * (topic_of_expert[None] == topic[:, None, None])
    expert_ids = np.argsort(-score, axis=2)[:, :, :TOP_K].astype(np.uint8)
    counts = [np.bincount(expert_ids[:, layer].ravel(), minlength=EXPERTS) for layer in range(LAYERS)]
    return RoutingProfile(
        layer_ids=np.arange(LAYERS, dtype=np.int32),
        expert_counts=np.stack(counts).astype(np.int64),
        num_logical_experts=EXPERTS,
        top_k=TOP_K,
        num_tokens=len(topic),
        vocab_size=VOCABULARY,
        sample=RoutingSample(
            expert_ids=expert_ids, token_ids=tokens.astype(np.int32), request_ids=request.astype(np.int32)
        ),
    )


FIT, OTHER = make_profile(1), make_profile(2)


@pytest.mark.parametrize("attention", ["dp", "tp"])
@pytest.mark.parametrize("extra_slots", [0, 1])
def test_a_plan_is_legal_and_beats_the_baselines_on_other_requests(attention, extra_slots):
    plan = solve(FIT, 4, attention=attention, extra_slots=extra_slots, max_imbalance=1.2)
    check_plan(plan, FIT, max_imbalance=1.2, extra_slots=extra_slots).require_legal()
    ours = mean_metrics(measure_plan(plan, OTHER.sample))
    for method in ("linear", "round_robin", "eplb"):
        theirs = solve(FIT, 4, attention=attention, extra_slots=extra_slots, method=method)
        assert (
            ours.remote_copies_per_token
            < 0.7 * mean_metrics(measure_plan(theirs, OTHER.sample)).remote_copies_per_token
        )


@pytest.mark.parametrize("attention", ["dp", "tp"])
def test_the_expected_figure_agrees_with_other_requests(attention):
    plan = solve(FIT, 4, attention=attention, max_imbalance=1.2)
    measured = mean_metrics(measure_plan(plan, OTHER.sample)).remote_copies_per_token
    spread = plan.predicted["held_out_spread"]
    assert 0.0 < spread < 0.3
    assert plan.predicted["held_out_objective"] == pytest.approx(measured, rel=spread)


def test_the_expected_figure_is_of_orders_that_the_search_has_not_seen(monkeypatch):
    seeds = []

    def noted(pull, lengths, *, orders, seed):
        seeds.append(seed)
        return simulated_shares(pull, lengths, orders=orders, seed=seed)

    monkeypatch.setattr("specmoe.placement.solvers.dp_search.simulated_shares", noted)
    solve(FIT, 4, max_imbalance=1.2, bound_seconds=0)
    assert seeds[-1] not in seeds[:-1]


@pytest.mark.parametrize("attention", ["dp", "tp"])
def test_the_expected_figure_knows_what_keeping_the_cap_costs_on_unequal_ranks(attention):
    links = {"intra_node_gb_per_s": 100, "inter_node_gb_per_s": 10}
    machine = Topology(ranks_per_node=(2, 2), relative_speed=(1, 1, 2, 2), slots=(4, 4, 5, 5), **links)
    # A trace so small leaves single searches a tenth apart.
    plans = [
        solve(FIT, machine, attention=attention, bound_seconds=0, best_effort=True, seed=seed) for seed in range(4)
    ]
    measured = [objective_of(mean_metrics(measure_plan(plan, OTHER.sample)), machine) for plan in plans]
    expected = np.mean([plan.predicted["held_out_objective"] for plan in plans])
    assert expected == pytest.approx(np.mean(measured), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topology": 0}, "ep_size is 0"),
        ({"topology": 17}, "ep_size is 17"),
        ({"method": "magic"}, "method is 'magic'"),
        ({"max_imbalance": 0.9}, "max_imbalance is 0.9"),
        ({"extra_slots": -1}, "extra_slots is -1"),
        ({"attention": "mp"}, "attention is 'mp'"),
        ({"time_limit": 0}, "time_limit is 0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(UsageError, match=message):
        solve(FIT, **{"topology": 4, **arguments})


def test_solving_imports_neither_torch_nor_transformers():
    code = "import sys; from specmoe.placement.solve import solve; print({'torch', 'transformers'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize(("ranks", "groups"), [(4, 2), (2, 4), (4, 4)])
def test_a_group_limited_plan_keeps_groups_and_still_gains(ranks, groups):
    plan = solve(FIT, ranks, group_limited=True, expert_groups=groups, max_imbalance=1.5)
    check_plan(plan, FIT, expert_groups=groups).require_legal()
    assert plan.objective < solve(FIT, ranks, method="linear").objective


def test_files_are_taken_by_their_names(tmp_path):
    FIT.save(tmp_path / "fit.profile")
    (tmp_path / "two.json").write_text('{"ranks_per_node": [1, 1]}')
    plan = solve(str(tmp_path / "fit.profile"), tmp_path / "two.json", method="linear")
    assert plan.digest == solve(FIT, Topology(ranks_per_node=(1, 1)), method="linear").digest


def test_expert_groups_that_the_model_does_not_have_are_refused():
    profile = replace(FIT, num_expert_groups=4)
    with pytest.raises(UsageError, match="expert_groups is 2, and the router of the profiled model has 4"):
        solve(profile, 2, group_limited=True, expert_groups=2)


def test_a_wish_to_stop_gives_a_legal_plan_at_once():
    asked = []
    plan = solve(FIT, 4, extra_slots=1, max_imbalance=1.3, should_stop=lambda: asked.append(1) or True)
    assert asked
    check_plan(plan, FIT, extra_slots=1).require_legal()


def test_annealing_that_is_cut_short_while_hot_does_not_leave_worse_copies():
    def stopped_after(stage):
        seen = set()
        return solve(
            FIT,
            4,
            extra_slots=1,
            max_imbalance=1.3,
            on_progress=lambda progress: seen.add(progress.stage),
            should_stop=lambda: stage in seen,
        )

    assert stopped_after("replicas").objective <= 1.01 * stopped_after("starts").objective


def test_a_time_limit_still_gives_a_legal_plan():
    plan = solve(FIT, 4, attention="tp", extra_slots=1, max_imbalance=1.3, time_limit=0.01)
    check_plan(plan, FIT, extra_slots=1).require_legal()


@pytest.mark.parametrize("bound_seconds", [1e-9, 0.2])
def test_progress_tells_the_gap_that_the_plan_ends_with(bound_seconds):
    told = []
    plan = solve(FIT, 2, method="linear", extra_slots=1, bound_seconds=bound_seconds, on_progress=told.append)
    assert told[-1].stage == "bounds"
    # Without work there is no bound, and so no gap.
    assert (plan.gap is None) == (bound_seconds < 0.2)
    assert told[-1].gap == (None if plan.gap is None else pytest.approx(plan.gap))


def test_ilp_proves_that_no_placement_does_better_with_its_homes():
    plan = solve(FIT, 2, method="ilp", attention="tp", max_imbalance=1.3)
    assert plan.gap == pytest.approx(0, abs=1e-3)
    assert plan.objective <= solve(FIT, 2, attention="tp", max_imbalance=1.3).objective + 1e-6


def test_ilp_is_refused_where_replicas_of_many_experts_are_asked_for():
    with pytest.raises(
        UsageError, match="16 experts in 20 slots give the ranks 17,472 ways to be filled, at most 1,000"
    ):
        solve(FIT, 4, method="ilp", extra_slots=1)
