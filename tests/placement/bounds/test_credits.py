"""The bound by credits, and the exact search that it stands on, against all columns and all placements."""

import itertools
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.credit_ascent import CreditAscent, can_credit, credit_bound
from specmoe.placement.bounds.credits import TokenTypes, masks_of, price_covers
from specmoe.placement.bounds.layer_bound import bound_layer
from specmoe.placement.bounds.mask_costs import count_masks
from specmoe.placement.bounds.mask_search import cheapest_column
from specmoe.placement.options import SolveOptions

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**8
SLOTS = [((2, 2, 2), 4), ((3, 2), 4), ((2, 2, 2), 5), ((3, 3), 5), ((1, 2, 1, 2), 4)]


def case_with_replicas(seed, slots, experts, top_k):
    return brute_force.random_case(np.random.default_rng(seed), experts=experts, top_k=top_k, slots=slots, tokens=40)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SLOTS), st.integers(1, 4), st.sampled_from([3 * 10**5, PLENTY]))
def test_no_bound_by_credits_lies_above_the_best_cover_of_the_best_placement(seed, shape, top_k, work):
    case = case_with_replicas(seed, *shape, top_k)
    best = brute_force.best_cost_with_replicas(case)
    assert credit_bound(case, work, lambda: False) <= best
    assert bound_layer(case, SolveOptions(), work).with_homes <= best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("top_k", [2, 3])
def test_it_comes_close_to_the_best_placement(seed, top_k):
    case = case_with_replicas(seed, (2, 2, 2), 5, top_k)
    best = brute_force.best_cost_with_replicas(case)
    assert credit_bound(case, PLENTY, lambda: False) > 0.85 * best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_for_any_credits_no_token_pays_less_than_the_price_of_its_cover_less_what_it_credits(seed, top_k):
    rng = np.random.default_rng(seed)
    case = case_with_replicas(seed, (2, 2, 2), 5, top_k)
    types = TokenTypes.of(case)
    worth = rng.random((len(types.home), top_k)) * 1.5
    masks = np.arange(1 << top_k)
    has = (masks[:, None] >> np.arange(top_k)) & 1
    credit = np.maximum(worth @ has.T - rng.random(), 0.0)
    cover, block = np.zeros_like(credit), np.zeros(credit.shape, dtype=np.uint8)
    price_covers(credit, cover, block)
    held = np.zeros((case.ep_size, len(case.sets)), dtype=np.uint8)
    rows = np.arange(len(types.home))
    for holds in itertools.islice(brute_force.replica_placements((2, 2, 2), 5), 0, None, 37):
        for rank in range(case.ep_size):
            masks_of(case.sets, holds[rank].astype(np.uint8), held[rank])
        mask = held[:, types.set_of_type]
        least = brute_force.least_copies(holds, case.sets)[types.set_of_type, types.home]
        paid = cover[rows, masks[-1] & ~mask[types.home, rows].astype(np.int64)]
        for rank in range(case.ep_size):
            paid -= np.where(types.home == rank, 0.0, credit[rows, mask[rank]])
        assert (paid <= least + 1e-9).all()


def test_what_is_proven_is_what_all_columns_give_at_the_credits():
    case = case_with_replicas(5, (2, 3, 2), 5, 3)
    ascent = CreditAscent(case)
    for _ in range(10):
        ascent.guess(fresh=False)
        ascent.climb(0.1)
    proven = ascent.prove(PLENTY)
    total, has = ascent.price.sum(), np.zeros(len(case.sets), dtype=np.uint8)
    for rank, slots in enumerate(case.slots):
        least = np.inf
        for column in itertools.combinations(range(5), slots):
            masks_of(case.sets, np.isin(np.arange(5), column).astype(np.uint8), has)
            cost = ascent.cost[rank, np.arange(len(has)), has].sum() - ascent.price[list(column)].sum()
            least = min(least, cost)
        total += least
    assert proven == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("falling", [True, False], ids=["falling", "any"])
@pytest.mark.parametrize(
    ("experts", "top_k", "slots"), [(9, 3, 4), (7, 4, 2), (6, 2, 1), (8, 4, 7), (5, 1, 5), (10, 4, 5)]
)
def test_the_cheapest_column_is_the_one_that_enumeration_finds(experts, top_k, slots, falling):
    rng = np.random.default_rng(experts)
    case = brute_force.random_case(rng, experts=experts, top_k=top_k, slots=(experts,))
    cost = rng.integers(-50, 50, size=(len(case.sets), 1 << top_k)).astype(np.int32)
    if falling:
        cost = -np.sort(-cost, axis=1)
    price = rng.integers(0, 100, size=experts).astype(np.float64)
    counted = count_masks(case.sets, cost, case.load)
    costs, masks = {}, np.zeros(len(case.sets), dtype=np.uint8)
    for column in itertools.combinations(range(experts), slots):
        masks_of(case.sets, np.isin(np.arange(experts), column).astype(np.uint8), masks)
        whole = cost[np.arange(len(masks)), masks].sum() - price[list(column)].sum()
        costs[column] = float(whole - counted.constant)
    best = min(costs.values())
    found = cheapest_column(counted.exact, counted.share, price, slots, best + 1.0, PLENTY)
    assert found.is_complete
    assert found.is_found
    assert found.bound == best == costs[tuple(np.flatnonzero(found.column))]
    unsought = cheapest_column(counted.exact, counted.share, price, slots, best, PLENTY)
    assert not unsought.is_found
    assert unsought.bound >= best
    for work in (0, 10**3, 10**4):
        assert cheapest_column(counted.exact, counted.share, price, slots, np.inf, work).bound <= best


def test_a_climb_that_is_stopped_or_has_no_work_says_nothing():
    case = case_with_replicas(1, (2, 2, 2), 5, 2)
    assert credit_bound(case, 1000, lambda: False) == 0.0
    assert credit_bound(case, PLENTY, lambda: True) == 0.0


def test_large_sets_and_many_experts_are_left_to_the_bound_by_parts():
    assert can_credit(case_with_replicas(1, (2, 2, 2), 5, 2))
    rng = np.random.default_rng(1)
    assert not can_credit(brute_force.random_case(rng, experts=6, top_k=5, slots=(4, 4)))
    assert not can_credit(brute_force.random_case(rng, experts=64, top_k=2, slots=(33, 33)))
