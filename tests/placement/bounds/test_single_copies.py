"""Bounds for single copies, against all placements: never above the best, and equal to it where they are exact."""

import itertools
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.column_search import Room, search_columns
from specmoe.placement.bounds.companions import companions_bound
from specmoe.placement.bounds.groups import groups_of_sets, weigh
from specmoe.placement.bounds.layer_bound import ascend_any_homes, ascend_ranks, bound_layer, settle_layer
from specmoe.placement.bounds.witness_bound import witness_bound, witness_bound_anywhere
from specmoe.placement.options import SolveOptions

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**9
SLOTS = [(2, 2, 2), (3, 3), (1, 2, 3), (2, 2), (2, 2, 2, 2), (4, 4), (1, 1, 1, 1, 1), (5, 2)]
layers = st.builds(
    lambda seed, slots, top_k, slack, speeds: brute_force.random_case(
        np.random.default_rng(seed),
        experts=sum(slots),
        top_k=min(top_k, sum(slots)),
        slots=slots,
        slack=slack,
        speeds=tuple(1.0 + 0.5 * rank for rank in range(len(slots))) if speeds else None,
    ),
    st.integers(0, 10**6),
    st.sampled_from(SLOTS),
    st.integers(1, 6),
    st.sampled_from([None, 0.6, 0.2, 0.02]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(layers, st.sampled_from([10**3, 10**5, 10**7, PLENTY]))
def test_no_bound_lies_above_the_best_placement(case, work):
    best, anywhere = brute_force.best_cost(case), brute_force.best_cost_with_any_homes(case)
    assert companions_bound(case) <= best
    assert ascend_ranks(case, work).bound <= best
    assert ascend_any_homes(case, work).bound - case.num_tokens <= anywhere
    assert witness_bound(case, work, lambda: False) <= best
    assert witness_bound_anywhere(case, work, lambda: False) <= anywhere
    proven = bound_layer(case, SolveOptions(), work)
    assert proven.any_homes <= proven.with_homes <= best
    assert proven.any_homes <= anywhere


@settings(max_examples=40, deadline=None)
@given(layers)
def test_settling_finds_the_best_placement_or_proves_that_there_is_none(case):
    best = brute_force.best_cost(case)
    settled = settle_layer(case, SolveOptions(), PLENTY)
    assert settled.with_homes == best
    if np.isfinite(best):
        assert settled.cost == brute_force.costs(case, settled.rank_of_expert[None])[0] == best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(0, 0, 1, 1), (0, 1, 1, 2)]), st.sampled_from([0.3, 4.0]))
def test_bounds_count_a_node_once(seed, nodes, surcharge):
    rng = np.random.default_rng(seed)
    case = brute_force.random_case(
        rng, experts=8, top_k=3, slots=(2, 2, 2, 2), nodes=nodes, surcharge=surcharge, slack=0.3
    )
    best = brute_force.best_cost(case)
    assert bound_layer(case, SolveOptions(), PLENTY).with_homes <= best


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "listed"])
@pytest.mark.parametrize(("experts", "top_k", "slots"), [(9, 3, 4), (7, 4, 2), (6, 2, 1), (8, 4, 7), (5, 1, 5)])
def test_the_cheapest_column_is_the_one_that_enumeration_finds(experts, top_k, slots, counted):
    rng = np.random.default_rng(experts)
    case = brute_force.random_case(rng, experts=experts, top_k=top_k, slots=(experts,))
    weight, price = case.tokens_of_set, np.round(rng.random(experts) * 640) / 64
    groups = groups_of_sets(case.sets, experts)
    weights = weigh(groups, weight.astype(np.int32))
    if not counted:
        weights = weights._replace(triple=weights.triple[:0], quadruple=weights.quadruple[:0])
    room = Room(slots, case.load, 0.0, 1.1 * slots * case.load.mean())
    costs = {}
    for column in itertools.combinations(range(experts), slots):
        if case.load[list(column)].sum() <= room.heaviest:
            met = np.isin(case.sets, column).any(axis=1)
            costs[column] = float(weight[met].sum() - price[list(column)].sum())
    found = search_columns(groups, weights, price, room, np.inf, True, PLENTY, 10)
    best = min(costs.values(), default=np.inf)
    assert found.is_complete
    assert found.value == best
    assert found.bound == pytest.approx(best, abs=1e-3)
    assert found.bound <= best
    threshold = np.quantile(list(costs.values()), 0.3)
    listed = search_columns(groups, weights, price, room, threshold, False, PLENTY, 10**4)
    expected = {column for column, cost in costs.items() if cost <= threshold}
    assert {tuple(np.flatnonzero(row)) for row in listed.held[: listed.num_found]} == expected


def test_a_search_cut_short_still_bounds_all_columns():
    rng = np.random.default_rng(3)
    case = brute_force.random_case(rng, experts=16, top_k=4, slots=(16,), tokens=400)
    groups = groups_of_sets(case.sets, 16)
    weights = weigh(groups, case.tokens_of_set.astype(np.int32))
    price = np.full(16, 60.0)
    room = Room(8, case.load, 0.0, case.load.sum())
    best = search_columns(groups, weights, price, room, np.inf, True, PLENTY, 10)
    bounds = [search_columns(groups, weights, price, room, np.inf, True, 10**n, 10).bound for n in range(2, 8)]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] == best.bound


def test_a_mixture_of_topics_is_placed_without_a_gap_and_a_cheap_bound_sees_it_coming():
    topics = np.arange(12).reshape(3, 4)
    case = brute_force.random_case(np.random.default_rng(0), experts=12, top_k=4, slots=(4, 4, 4), tokens=90)
    homes = np.zeros((3, 3), dtype=np.int64)
    homes[[0, 1, 2], [2, 0, 1]] = 30
    case = type(case)(
        **{**vars(case), "sets": topics.astype(np.int32), "homes_of_set": homes, "load": np.full(12, 30.0)}
    )
    assert bound_layer(case, SolveOptions(), PLENTY).with_homes == 0.0
    settled = settle_layer(case, SolveOptions(), PLENTY)
    assert settled.rank_of_expert.tolist() == [2] * 4 + [0] * 4 + [1] * 4
