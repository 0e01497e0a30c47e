"""The bound by credits, and the exact search that it stands on, against all columns and all placements."""

import itertools
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.credit_ascent import CreditAscent, can_credit, credit_bound, load_prices, search_work
from specmoe.placement.bounds.credits import TokenTypes, cost_masks, masks_of, move_credits, price_covers
from specmoe.placement.bounds.layer_bound import bound_layer
from specmoe.placement.bounds.mask_costs import count_masks
from specmoe.placement.bounds.mask_search import cheapest_column
from specmoe.placement.options import SolveOptions

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**8
SLOTS = [((2, 2, 2), 4), ((3, 2), 4), ((2, 2, 2), 5), ((3, 3), 5), ((1, 2, 1, 2), 4)]


def case_with_replicas(seed, slots, experts, top_k, *, slack=None):
    rng = np.random.default_rng(seed)
    return brute_force.random_case(rng, experts=experts, top_k=top_k, slots=slots, tokens=40, slack=slack)


def random_credits(rng, types, top_k):
    """Of parts of each token's experts, [2 ** K, N]: more for larger ones, none for none."""
    worth = rng.random((top_k, len(types.home))) * 1.5
    has = (np.arange(1 << top_k)[:, None] >> np.arange(top_k)) & 1
    return np.maximum(has @ worth - rng.random(), 0.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SLOTS), st.integers(1, 4), st.sampled_from([3 * 10**5, PLENTY]))
def test_no_bound_by_credits_lies_above_the_best_cover_of_the_best_placement(seed, shape, top_k, work):
    case = case_with_replicas(seed, *shape, top_k)
    best = brute_force.best_cost_with_replicas(case)
    assert credit_bound(case, work, lambda: False) <= best
    assert bound_layer(case, SolveOptions(), work).with_homes <= best


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0.02, 0.1, 0.3]),
    st.sampled_from(["static", "cover"]),
)
def test_no_bound_by_credits_lies_above_the_best_dispatch_that_keeps_the_cap(seed, top_k, slack, choice):
    case = case_with_replicas(seed, (2, 2, 2), 4, top_k, slack=slack)
    assert credit_bound(case, PLENTY, lambda: False) <= brute_force.least_cost_under_the_cap(case, choice)


def test_the_cap_makes_the_bound_higher():
    gains = []
    for seed in range(6):
        free, capped = (case_with_replicas(seed, (3, 3, 3), 7, 3, slack=slack) for slack in (None, 0.02))
        gains.append(credit_bound(capped, PLENTY, lambda: False) / credit_bound(free, PLENTY, lambda: False))
    assert np.mean(gains) > 1.02


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
    credit, masks = random_credits(rng, types, top_k), np.arange(1 << top_k)
    cover = np.zeros_like(credit)
    price_covers(credit, cover)
    held = np.zeros((case.ep_size, len(case.sets)), dtype=np.uint8)
    rows = np.arange(len(types.home))
    for holds in itertools.islice(brute_force.replica_placements((2, 2, 2), 5), 0, None, 37):
        for rank in range(case.ep_size):
            masks_of(case.sets, holds[rank].astype(np.uint8), held[rank])
        mask = held[:, types.set_of_type]
        least = brute_force.least_copies(holds, case.sets)[types.set_of_type, types.home]
        paid = cover[masks[-1] & ~mask[types.home, rows].astype(np.int64), rows]
        for rank in range(case.ep_size):
            paid -= np.where(types.home == rank, 0.0, credit[mask[rank], rows])
        assert (paid <= least + 1e-9).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(["static", "cover"]))
def test_at_any_price_of_load_no_dispatch_that_keeps_the_cap_costs_less_than_its_columns(seed, top_k, choice):
    rng = np.random.default_rng(seed)
    case = case_with_replicas(seed, (2, 2, 2), 4, top_k, slack=0.15)
    types, prices = TokenTypes.of(case), np.array([0.0, rng.random() / 2, rng.random()])
    credit = random_credits(rng, types, top_k)
    cover = np.zeros_like(credit)
    price_covers(credit, cover)
    cost = np.zeros((3, 3, len(case.sets), 1 << top_k))
    scratch = np.zeros(3 * credit.size)
    cost_masks(types.starts, types.home, types.tokens, credit, cover, prices, scratch, cost)
    held, ranks = np.zeros(len(case.sets), dtype=np.uint8), range(3)
    for holds, dispatch in itertools.islice(brute_force.dispatches((2, 2, 2), 4), seed % 23, None, 23):
        paid = brute_force.cost_of_dispatch(case, holds, dispatch, choice)
        if np.isinf(paid):
            continue
        least = 0.0
        for rank in ranks:
            masks_of(case.sets, holds[rank].astype(np.uint8), held)
            least += (cost[:, rank, np.arange(len(held)), held].sum(axis=1) - prices * case.ceiling[rank]).max()
        assert least <= paid + 1e-9


def test_a_credit_falls_for_the_smallest_part_that_earns_a_column_most():
    # One token at home on rank 0, its two experts on rank 1, by whom one of them is worth as much as both.
    credit, cover = np.array([[0.0], [0.5], [0.0], [0.5]]), np.zeros((4, 1))
    price_covers(credit, cover)
    masks, zero = np.array([[3], [3]], dtype=np.uint8), np.zeros(1, dtype=np.int32)
    for load_price, fallen in ((0.1, 0.4), (0.6, 0.5)):
        moved = credit.copy()
        move_credits(zero, zero, masks, np.full(2, load_price), cover, np.zeros((4, 1)), moved, 0.1, 0.0)
        # Where a pair costs more than it earns none is served.
        assert moved[:, 0] == pytest.approx([0.0, fallen, 0.0, 0.5])


@pytest.mark.parametrize("slack", [None, 0.05], ids=["free", "capped"])
def test_what_is_proven_is_what_all_columns_give_at_the_credits(slack):
    case = case_with_replicas(5, (2, 3, 2), 5, 3, slack=slack)
    ascent = CreditAscent(case, load_prices(case, PLENTY))
    assert len(ascent.load_price) == (1 if slack is None else 2)
    for _ in range(10):
        ascent.guess(fresh=False)
        ascent.climb(0.1)
    proven = ascent.prove(PLENTY)
    total, has = ascent.price.sum(), np.zeros(len(case.sets), dtype=np.uint8)
    for rank, slots in enumerate(case.slots):
        least = np.inf
        for column in itertools.combinations(range(5), slots):
            masks_of(case.sets, np.isin(np.arange(5), column).astype(np.uint8), has)
            ways = ascent.cost[:, rank, np.arange(len(has)), has].sum(axis=1) - ascent.load_price * case.ceiling[rank]
            least = min(least, ways.max() - ascent.price[list(column)].sum())
        total += least
    # A rank's ceiling is rounded to whole units.
    assert total - 1e-2 < proven <= total + 1e-9


@pytest.mark.parametrize("ways", [1, 2, 3])
@pytest.mark.parametrize("falling", [True, False], ids=["falling", "any"])
@pytest.mark.parametrize(
    ("experts", "top_k", "slots"), [(9, 3, 4), (7, 4, 2), (6, 2, 1), (8, 4, 7), (5, 1, 5), (10, 4, 5)]
)
def test_the_cheapest_column_is_the_one_that_enumeration_finds(experts, top_k, slots, falling, ways):
    rng = np.random.default_rng(experts)
    case = brute_force.random_case(rng, experts=experts, top_k=top_k, slots=(experts,))
    cost = rng.integers(-50, 50, size=(ways, len(case.sets), 1 << top_k)).astype(np.int32)
    if falling:
        cost = -np.sort(-cost, axis=2)
    price, constant = rng.integers(0, 100, size=experts).astype(np.float64), rng.integers(-99, 99, ways).astype(float)
    counted = count_masks(case.sets, cost, case.load)
    assert (counted.constant == cost[:, :, 0].sum(axis=1)).all()
    costs, masks = {}, np.zeros(len(case.sets), dtype=np.uint8)
    for column in itertools.combinations(range(experts), slots):
        masks_of(case.sets, np.isin(np.arange(experts), column).astype(np.uint8), masks)
        beyond = cost[:, np.arange(len(masks)), masks].sum(axis=1) - counted.constant
        costs[column] = float((beyond + constant).max() - price[list(column)].sum())
    best = min(costs.values())
    found = cheapest_column(counted, constant, price, slots, best + 1.0, PLENTY)
    assert found.is_complete
    assert found.is_found
    assert found.bound == best == costs[tuple(np.flatnonzero(found.column))]
    unsought = cheapest_column(counted, constant, price, slots, best, PLENTY)
    assert not unsought.is_found
    assert unsought.bound >= best
    for work in (0, 10**3, 3 * 10**3, 10**4, 3 * 10**4, 10**5):
        assert cheapest_column(counted, constant, price, slots, np.inf, work).bound <= best


def test_credits_that_counts_cannot_hold_prove_nothing():
    case = case_with_replicas(5, (2, 3, 2), 5, 3)
    ascent = CreditAscent(case, load_prices(case, PLENTY))
    ascent.credit[-1] *= 1e9
    assert ascent.prove(PLENTY) == 0.0


def test_load_has_a_price_where_the_cap_can_bind_and_the_work_is_enough():
    free, capped = (case_with_replicas(1, (2, 2, 2), 5, 2, slack=slack) for slack in (None, 0.1))
    enough = search_work(capped)
    assert load_prices(free, PLENTY).tolist() == load_prices(capped, enough - 1).tolist() == [0.0]
    assert len(load_prices(capped, enough)) == 2


def test_a_search_is_easier_where_some_experts_stand_out():
    case = case_with_replicas(1, (3, 3), 6, 2)
    even, uneven = (replace(case, load=np.array(load)) for load in ([2.0] * 6, [7.0, 1, 1, 1, 1, 1]))
    assert search_work(uneven) < search_work(even) == pytest.approx(3 * 2 * 20, abs=1)


def test_a_climb_that_is_stopped_or_has_no_work_says_nothing():
    case = case_with_replicas(1, (2, 2, 2), 5, 2)
    assert credit_bound(case, 1000, lambda: False) == 0.0
    assert credit_bound(case, PLENTY, lambda: True) == 0.0


def test_large_sets_and_many_experts_are_left_to_the_bound_by_parts():
    assert can_credit(case_with_replicas(1, (2, 2, 2), 5, 2))
    rng = np.random.default_rng(1)
    assert not can_credit(brute_force.random_case(rng, experts=6, top_k=5, slots=(4, 4)))
    assert not can_credit(brute_force.random_case(rng, experts=64, top_k=2, slots=(33, 33)))
