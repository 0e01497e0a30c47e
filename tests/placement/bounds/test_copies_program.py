"""The integer program with replicas, against all ways to fill the slots, and the plans that come of it."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.copies_program import best_copies, can_program
from specmoe.placement.bounds.layer_bound import settle_layer
from specmoe.placement.options import SolveOptions
from specmoe.placement.solve import solve
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**10
SLOTS = [((2, 2, 2), 4), ((3, 2), 4), ((2, 2, 2), 5), ((1, 2, 1, 2), 4)]


def case_with_replicas(seed, slots, experts, top_k, **limits):
    rng = np.random.default_rng(seed)
    return brute_force.random_case(rng, experts=experts, top_k=top_k, slots=slots, tokens=40, **limits)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SLOTS), st.integers(1, 4))
def test_without_a_cap_it_finds_the_best_placement(seed, shape, top_k):
    case = case_with_replicas(seed, *shape, top_k)
    choice = best_copies(case, SolveOptions(), PLENTY)
    best = brute_force.best_cost_with_replicas(case)
    assert choice.bound == best
    cost = (brute_force.least_copies(choice.holds, case.sets) * case.homes_of_set).sum()
    assert cost == best
    known = replace(case, cost=float(best), is_legal=True)
    assert best_copies(known, SolveOptions(), PLENTY).bound == best
    assert settle_layer(known, SolveOptions(), PLENTY).with_homes == best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([0.02, 0.2]))
def test_no_placement_that_keeps_the_cap_costs_less(seed, top_k, slack):
    case = case_with_replicas(seed, (2, 2, 2), 4, top_k, slack=slack)
    best = min(brute_force.least_cost_under_the_cap(case, choice) for choice in ("static", "cover"))
    assert best_copies(case, SolveOptions(), PLENTY).bound <= best


def test_a_cap_that_no_placement_keeps_is_found_out():
    case = case_with_replicas(3, (2, 2, 2), 5, 2)
    tight = replace(case, ceiling=np.full(3, case.load.sum() / 4), is_legal=False)
    assert best_copies(tight, SolveOptions(), PLENTY).bound == np.inf


@pytest.mark.parametrize(("experts", "slots", "expected"), [(8, (3, 3, 3, 3), True), (16, (5, 5, 5, 5), False)])
def test_many_columns_are_left_to_the_bounds(experts, slots, expected):
    assert can_program(case_with_replicas(1, slots, experts, 2)) is expected


@pytest.mark.parametrize(("method", "bound_seconds", "expected"), [("auto", 0.0, 0), ("auto", 0.1, 2), ("ilp", 0.0, 2)])
def test_the_program_needs_a_budget_unless_it_is_the_method(method, bound_seconds, expected, monkeypatch):
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((200, 2, 4)), axis=2)[:, :, :3].astype(np.uint8)
    counts = np.stack([np.bincount(ids[:, layer].ravel(), minlength=4) for layer in range(2)])
    profile = RoutingProfile(
        layer_ids=np.arange(2, dtype=np.int32), expert_counts=counts, num_logical_experts=4, top_k=3,
        num_tokens=200, sample=RoutingSample(expert_ids=ids),
    )  # fmt: skip
    tried = []
    program = import_module("specmoe.placement.bounds.layer_bound")
    monkeypatch.setattr(program, "best_copies", lambda *case: tried.append(case) or best_copies(*case))
    solve(profile, 2, extra_slots=1, method=method, bound_seconds=bound_seconds, best_effort=True)
    assert len(tried) == expected
