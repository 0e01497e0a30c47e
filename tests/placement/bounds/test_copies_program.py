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

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**10
SLOTS = [((2, 2, 2), 4), ((3, 2), 4), ((2, 2, 2), 5), ((1, 2, 1, 2), 4)]


def case_with_replicas(seed, slots, experts, top_k, **limits):
    rng = np.random.default_rng(seed)
    return brute_force.random_case(rng, experts=experts, top_k=top_k, slots=slots, tokens=40, **limits)


@settings(max_examples=8, deadline=None)
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


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from([0.02, 0.2]))
def test_no_placement_that_keeps_the_cap_costs_less(seed, top_k, slack):
    case = case_with_replicas(seed, (2, 2, 2), 4, top_k, slack=slack)
    best = least_cost_under_the_cap(case)
    assert best_copies(case, SolveOptions(), PLENTY).bound <= best


def least_cost_under_the_cap(case):
    """The least best-cover cost of placements for which every home has a holder per expert that keeps the cap."""
    best = np.inf
    for holds in brute_force.replica_placements(tuple(case.slots.tolist()), case.num_experts):
        if keeps_cap_by_some_dispatch(case, holds):
            best = min(best, float((brute_force.least_copies(holds, case.sets) * case.homes_of_set).sum()))
    return best


def keeps_cap_by_some_dispatch(case, holds):
    loads = {(0,) * case.ep_size}
    for home in range(case.ep_size):
        for expert in range(case.num_experts):
            pairs = int(case.homes_of_set[(case.sets == expert).any(axis=1), home].sum())
            ranks = [home] if holds[home, expert] else np.flatnonzero(holds[:, expert])
            loads = {
                tuple(np.array(load) + pairs * (np.arange(case.ep_size) == rank)) for load in loads for rank in ranks
            }
    return any((np.array(load) <= case.ceiling + 1e-9).all() for load in loads)


def test_a_cap_that_no_placement_keeps_is_found_out():
    case = case_with_replicas(3, (2, 2, 2), 5, 2)
    tight = replace(case, ceiling=np.full(3, case.load.sum() / 4), is_legal=False)
    assert best_copies(tight, SolveOptions(), PLENTY).bound == np.inf


@pytest.mark.parametrize(("experts", "slots", "expected"), [(8, (3, 3, 3, 3), True), (16, (5, 5, 5, 5), False)])
def test_many_columns_are_left_to_the_bounds(experts, slots, expected):
    assert can_program(case_with_replicas(1, slots, experts, 2)) is expected
