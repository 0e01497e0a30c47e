"""The program by the replica choice itself, against all placements and all dispatches of them."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.copies_program import best_copies
from specmoe.placement.bounds.layer_bound import settle_layer
from specmoe.placement.bounds.served_choice import ServedChoice
from specmoe.placement.bounds.served_program import ServedProgram, best_served, can_serve
from specmoe.placement.options import SolveOptions

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**10


def case_of(seed, *, top_k, choice, slack, slots=(2, 2, 2), nodes=None):
    case = brute_force.random_case(
        np.random.default_rng(seed), experts=4, top_k=top_k, slots=slots, slack=slack, nodes=nodes, tokens=40
    )
    return replace(case, replica_choice=choice, is_legal=False)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 2), st.sampled_from(["static", "cover"]), st.sampled_from([None, 0.02, 0.2])
)
def test_it_finds_what_costs_least_of_all_placements_and_dispatches_that_keep_the_cap(seed, top_k, choice, slack):
    case = case_of(seed, top_k=top_k, choice=choice, slack=slack)
    best = brute_force.least_cost_under_the_cap(case, choice)
    relaxed = best_copies(case, SolveOptions(), PLENTY)
    if np.isinf(relaxed.bound):
        assert best == np.inf
        return
    found = best_served(case, relaxed, SolveOptions(), PLENTY)
    assert (found.bound, found.cost) == (best, best)
    if found.holds is not None:
        assert brute_force.cost_of_dispatch(case, found.holds, found.dispatch, choice) == best


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["static", "cover"]))
def test_its_loads_are_those_of_the_rules(seed, choice):
    case, rng = case_of(seed, top_k=2, choice=choice, slack=None, slots=(2,) * 6), np.random.default_rng(seed)
    ranks, experts = 6, 4
    # A pair is together on two ranks and apart on two others, so that what is named and what is nearer decides.
    columns = [[0, 1], [0, 1], [0, 2], [1, 3], [2, 3], rng.choice(experts, 2, replace=False).tolist()]
    holds = np.zeros((ranks, experts), dtype=np.bool_)
    for rank, column in enumerate(rng.permutation(columns)):
        holds[rank, column] = True
    dispatch = np.array(
        [[rng.choice(np.flatnonzero(holds[:, e])) for e in range(experts)] for _ in range(ranks)], dtype=np.int32
    )
    dispatch[holds] = np.nonzero(holds)[0]
    cost, loads = brute_force.traffic_of_dispatch(case, holds, dispatch, choice)
    for rank in range(ranks):
        less = np.where(np.arange(ranks) == rank, loads - 1, loads.sum())
        for ceiling, expected in ((loads, cost), (less, np.inf)):
            program = ServedProgram(replace(case, ceiling=ceiling))
            program.keep(holds)
            for home, expert in np.ndindex(dispatch.shape):
                program.model.add(program.named[home][expert][dispatch[home, expert]] == 1)
            known = ServedChoice(bound=0.0, cost=np.inf)
            assert program.improve(known, SolveOptions(), PLENTY).cost == expected


@pytest.mark.parametrize("choice", ["static", "cover"])
def test_what_the_plan_has_is_the_best_where_nothing_costs_less(choice):
    case = case_of(5, top_k=2, choice=choice, slack=0.2)
    best = settle_layer(case, SolveOptions(), PLENTY)
    known = replace(case, holds=best.served.holds, cost=best.cost, is_legal=True)
    again = settle_layer(known, SolveOptions(), PLENTY)
    assert (again.with_homes, again.cost, again.served.holds) == (best.cost, best.cost, None)


def test_larger_sets_and_several_nodes_are_left_to_the_relaxation():
    assert can_serve(case_of(1, top_k=2, choice="cover", slack=None))
    assert not can_serve(case_of(1, top_k=3, choice="cover", slack=None))
    assert not can_serve(case_of(1, top_k=2, choice="cover", slack=None, nodes=(0, 0, 1)))
