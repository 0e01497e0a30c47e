"""The search for few experts, two a token, against all placements and all dispatches by the rules themselves."""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.best_pairs import best_pairs, settle_aside
from specmoe.placement.bounds.layer_bound import settle_layer
from specmoe.placement.bounds.pair_anneal import anneal_pairs, least_cost
from specmoe.placement.bounds.pair_dispatch import best_dispatch
from specmoe.placement.bounds.pair_layer import can_pair, masks_of, pair_layer
from specmoe.placement.bounds.pair_loads import holders_of, least_overload, room_of_sets
from specmoe.placement.bounds.pair_search import PairFound, search_pairs
from specmoe.placement.bounds.served_choice import ServedChoice
from specmoe.placement.options import SolveOptions

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**9
SHAPES = [((2, 2, 2), 4), ((3, 2), 4), ((1, 2, 1, 2), 4)]


def case_of(seed, *, top_k=2, choice="cover", slack=None, slots=(2, 2, 2), experts=4, nodes=None):
    case = brute_force.random_case(
        np.random.default_rng(seed), experts=experts, top_k=top_k, slots=slots, slack=slack, nodes=nodes, tokens=40
    )
    # A plan fills all slots.
    holds = np.zeros_like(case.holds)
    for rank, count in enumerate(slots):
        holds[rank, :count] = True
    return replace(case, holds=holds, replica_choice=choice, is_legal=False)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 2),
    st.sampled_from(SHAPES),
    st.sampled_from(["static", "cover"]),
    st.sampled_from([None, 0.02, 0.2]),
)
def test_it_finds_what_costs_least_of_all_placements_and_dispatches_that_keep_the_cap(
    seed, top_k, shape, choice, slack
):
    case = case_of(seed, top_k=top_k, slots=shape[0], choice=choice, slack=slack)
    best = brute_force.least_cost_under_the_cap(case, choice)
    found = best_pairs(case, SolveOptions(), PLENTY)
    assert (found.bound, found.cost) == (best, best)
    if found.holds is not None:
        assert brute_force.cost_of_dispatch(case, found.holds, found.dispatch, choice) == best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.sampled_from(["static", "cover"]), st.integers(0, 60_000))
def test_a_search_that_is_cut_short_proves_no_more_than_is_true(seed, shape, choice, work):
    case = case_of(seed, slots=shape[0], choice=choice, slack=0.2)
    layer, best = pair_layer(case), brute_force.least_cost_under_the_cap(case, choice)
    limit = int(layer.loads.sum()) + 1
    found = search_pairs(layer, limit, work)
    assert found.bound <= best
    assert found.cost >= min(best, limit)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["static", "cover"]))
def test_the_search_needs_no_annealing(seed, choice):
    case = case_of(seed, choice=choice, slack=0.3)
    layer, best = pair_layer(case), brute_force.least_cost_under_the_cap(case, choice)
    limit = int(layer.loads.sum()) + 1
    found = search_pairs(layer, limit, PLENTY)
    assert found.cost == min(best, limit)
    assert found.bound == min(best, limit)


@pytest.mark.parametrize("choice", ["static", "cover"])
@pytest.mark.parametrize("seed", [0, 5])
def test_what_is_put_aside_is_served_or_refuted_exactly(seed, choice):
    case = case_of(seed, choice=choice, slack=0.2)
    layer, best = pair_layer(case), brute_force.least_cost_under_the_cap(case, choice)
    aside = np.array([masks_of(holds) for holds in brute_force.replica_placements((2, 2, 2), 4)])
    least = np.array([least_cost(layer, masks, holders_of(masks, 4)) for masks in aside])
    nothing = np.zeros((3, 4), dtype=np.int64)
    found = PairFound(10**6, 10**6, aside[0], nothing, False, aside, least)
    unknown = ServedChoice(bound=np.inf, cost=np.inf)
    settled = settle_aside(case, unknown, found, SolveOptions(), PLENTY)
    assert (settled.bound, settled.cost) == (best, best)
    assert brute_force.cost_of_dispatch(case, settled.holds, settled.dispatch, choice) == best
    nearly = settle_aside(case, replace(unknown, cost=best), found, SolveOptions(), PLENTY)
    assert (nearly.bound, nearly.holds) == (best, None)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["static", "cover"]))
def test_a_dispatch_costs_and_loads_what_the_rules_say(seed, choice):
    ranks, experts, rng = 6, 4, np.random.default_rng(seed)
    # A pair is together on two ranks and apart on two others, so that what is named and what is nearer decides.
    columns = [[0, 1], [0, 1], [0, 2], [1, 3], [2, 3], rng.choice(experts, 2, replace=False).tolist()]
    holds = np.zeros((ranks, experts), dtype=np.bool_)
    for rank, column in enumerate(rng.permutation(columns)):
        holds[rank, column] = True
    case = case_of(seed, choice=choice, slots=(2,) * 6, slack=rng.choice([0.1, 0.3, 0.6]))
    layer = pair_layer(case)
    room = room_of_sets(layer.ceiling)
    found = best_dispatch(layer, masks_of(holds), room, PLENTY, PLENTY)
    assert found.is_complete
    if found.is_found:
        cost, loads = brute_force.traffic_of_dispatch(case, holds, found.names.astype(np.int32), choice)
        assert cost == found.cost
        assert (loads <= case.ceiling).all()
        overload = least_overload(
            layer, holders_of(masks_of(holds), experts), room, np.zeros(len(room), dtype=np.int64)
        )
        assert overload == 0


@pytest.mark.parametrize("choice", ["static", "cover"])
def test_annealing_finds_the_best_of_a_small_layer(choice):
    case = case_of(5, choice=choice, slack=0.2)
    layer = pair_layer(case)
    start = np.array([0b0011, 0b0110, 0b1100])
    found = anneal_pairs(layer, start, int(layer.loads.sum()) + 1, 5_000, 0)
    assert found.cost == brute_force.least_cost_under_the_cap(case, choice)


@pytest.mark.parametrize("choice", ["static", "cover"])
def test_what_the_plan_has_is_the_best_where_nothing_costs_less(choice):
    case = case_of(5, choice=choice, slack=0.2)
    best = settle_layer(case, SolveOptions(), PLENTY)
    known = replace(case, holds=best.served.holds, cost=best.cost, is_legal=True)
    again = settle_layer(known, SolveOptions(), PLENTY)
    assert (again.with_homes, again.cost, again.served.holds) == (best.cost, best.cost, None)


def test_a_cap_that_no_placement_keeps_is_found_out():
    case = case_of(3, slots=(2, 2, 2), experts=5)
    tight = replace(case, ceiling=np.full(3, case.load.sum() / 4))
    assert best_pairs(tight, SolveOptions(), PLENTY).bound == np.inf


def test_larger_sets_several_nodes_and_many_columns_are_left_to_the_relaxation():
    assert can_pair(case_of(1))
    assert not can_pair(case_of(1, top_k=3))
    assert not can_pair(case_of(1, nodes=(0, 0, 1)))
    assert not can_pair(case_of(1, experts=12, slots=(7, 7)))
