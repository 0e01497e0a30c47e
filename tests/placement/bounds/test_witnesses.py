"""Witnesses and what sharing ranks is worth at most, against all placements of small layers."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.companions import companions_bound
from specmoe.placement.bounds.largest_eigenvalue import largest_eigenvalue
from specmoe.placement.bounds.layer_bound import bound_layer, settle_layer
from specmoe.placement.bounds.shared_ascent import project_entries
from specmoe.placement.bounds.shared_ranks import RankLimits, most_worth, shared_by
from specmoe.placement.bounds.witness_bound import witness_bound
from specmoe.placement.bounds.witnesses import call_witnesses, seated_members
from specmoe.placement.options import SolveOptions

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

WORK = 10**8
SLOTS = [((2, 2, 2), 6), ((3, 3), 6), ((1, 2, 3), 6), ((2, 2, 2), 5), ((3, 2), 4), ((1, 2, 1, 2), 4)]


def never():
    return False


def random_layer(seed, shape, top_k, slack=None):
    slots, experts = shape
    rng = np.random.default_rng(seed)
    return brute_force.random_case(rng, experts=experts, top_k=top_k, slots=slots, tokens=40, slack=slack)


def all_holds(case):
    """bool [M, R, E]: every placement that keeps the ceiling; with replicas, every placement."""
    slots = tuple(case.slots.tolist())
    if case.has_replicas:
        return np.array(list(brute_force.replica_placements(slots, case.num_experts)))
    ranks = brute_force.placements(slots)
    legal = ranks[np.isfinite(brute_force.costs(case, ranks))]
    return legal[:, None, :] == np.arange(case.ep_size)[None, :, None]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SLOTS), st.integers(1, 4))
def test_witnesses_called_at_any_sharing_are_no_more_than_the_ranks_that_serve_and_their_common_ones(
    seed, shape, top_k
):
    case, rng = random_layer(seed, shape, top_k), np.random.default_rng(seed)
    size = case.num_experts + case.ep_size
    called_at, pairs = rng.random((size, size)).astype(np.float32), np.zeros((size, size))
    called = call_witnesses(*seated_members(case), called_at + called_at.T, pairs)
    assert called >= case.num_tokens
    for holds in all_holds(case)[:200]:
        met = float((brute_force.least_copies(holds, case.sets) * case.homes_of_set).sum()) + case.num_tokens
        assert called - (pairs * np.minimum(shared_by(holds), 1.0)).sum() <= met


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SLOTS), st.sampled_from([None, 0.6, 0.1]))
def test_no_placement_shares_ranks_worth_more_whatever_the_multipliers(seed, shape, slack):
    case, rng = random_layer(seed, shape, 2, slack), np.random.default_rng(seed)
    limits, size = RankLimits.of(case), case.num_experts + case.ep_size
    worth, smooth = rng.random((size, size)) ** 3, rng.normal(size=(size, size)) * rng.choice([0.0, 0.1, 1.0])
    worth, smooth = worth + worth.T, smooth + smooth.T
    worth[case.num_experts :, case.num_experts :] = 0.0
    np.fill_diagonal(worth, 0.0)
    price = np.maximum(rng.normal(size=size), 0.0)
    most = most_worth(limits, worth, smooth, price)
    for holds in all_holds(case):
        assert (worth * np.minimum(shared_by(holds), 1.0)).sum() <= most


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("shape", "top_k", "slack", "share"),
    [(((2, 2, 2, 2), 8), 3, None, 0.85), (((3, 3, 3), 9), 3, 0.3, 0.8), (((2, 2, 2), 5), 2, 0.02, 0.7)],
    ids=["single", "single-capped", "replicas"],
)
def test_it_comes_near_the_best_placement(seed, shape, top_k, slack, share):
    case = random_layer(seed, shape, top_k, slack)
    best = brute_force.best_cost_with_replicas(case) if case.has_replicas else brute_force.best_cost(case)
    assert share * best < witness_bound(case, WORK, never) <= best


def test_the_load_cap_raises_it():
    free, capped = (random_layer(2, ((2, 2, 2), 6), 2, slack) for slack in (None, 0.3))
    assert brute_force.best_cost(free) < witness_bound(capped, WORK, never)


def wide_layer():
    return brute_force.random_case(np.random.default_rng(0), experts=48, top_k=6, slots=(12,) * 4, tokens=300)


def test_it_takes_the_place_of_columns_where_these_are_too_many():
    case = wide_layer()
    for replicas in (0, 1):
        slots = case.slots + np.int32(replicas)
        wider = type(case)(**{**vars(case), "slots": slots})
        proven = bound_layer(wider, SolveOptions(), WORK)
        assert proven.with_homes == np.ceil(witness_bound(wider, (3 + replicas) * WORK // 4, never))
        assert proven.with_homes > companions_bound(wider)
        assert (proven.any_homes > 0) == (replicas == 0)


def test_it_bounds_what_the_search_for_the_best_placement_leaves_open():
    settled = settle_layer(wide_layer(), SolveOptions(), WORK)
    assert settled.with_homes >= witness_bound(wide_layer(), WORK, never) > 0


def test_without_work_it_says_nothing_and_it_stops_when_told():
    case = random_layer(1, ((2, 2, 2), 6), 2)
    assert witness_bound(case, 1000, never) == 0.0
    turns = iter(range(3))
    once = witness_bound(case, WORK, lambda: next(turns) >= 0)
    assert next(turns) == 1
    assert once < witness_bound(case, WORK, never)


@pytest.mark.parametrize("size", [2, 9, 72])
def test_the_largest_eigenvalue_across_a_direction_is_hardly_above_what_it_is(size):
    rng = np.random.default_rng(size)
    matrix, normal = rng.normal(size=(size, size)) - 3.0 * np.eye(size), rng.normal(size=size)
    matrix = matrix + matrix.T
    across = np.linalg.qr(normal[:, None], mode="complete")[0][:, 1:]
    largest = np.linalg.eigvalsh(across.T @ matrix @ across)[-1]
    assert largest <= largest_eigenvalue(matrix, normal) <= largest + 1e-9 * size
    assert largest_eigenvalue(matrix + 1e6 * np.outer(normal, normal), normal) == pytest.approx(largest, abs=1e-3)


def test_a_guess_of_the_largest_eigenvalue_that_is_too_low_is_found_out(monkeypatch):
    rng, guess = np.random.default_rng(0), np.linalg.eigvalsh
    matrix = rng.normal(size=(12, 12))
    matrix = matrix + matrix.T
    largest = largest_eigenvalue(matrix, np.ones(12))
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda matrix: guess(matrix) - 0.1)
    assert largest_eigenvalue(matrix, np.ones(12)) >= largest - 1e-9


@pytest.mark.parametrize("single", [True, False], ids=["single", "replicas"])
def test_entries_are_projected_to_the_nearest_that_are_in_order(single):
    rng, experts, size = np.random.default_rng(0), 5, 8
    for _ in range(50):
        free = rng.normal(size=(size, size))
        free = free + free.T
        nearest = free.copy()
        project_entries(nearest, experts, single)
        held = nearest[:experts, experts:]
        anywhere = rng.random(held.shape), np.full((experts, experts), rng.random())
        near = held + 0.02 * rng.normal(size=held.shape), nearest[:experts, :experts]
        for cells, pairs in (anywhere, near):
            other = entries_of(np.clip(cells, 0.0, 1.0), pairs, single)
            # Nothing in order lies on the far side of the nearest.
            assert ((free - nearest) * (other - nearest)).sum() <= 1e-8
            again = other.copy()
            project_entries(again, experts, single)
            np.testing.assert_allclose(again, other, atol=1e-9)


def entries_of(held, pairs, single):
    """Entries in order: experts' with ranks, [E, R], made to add up to at least 1, and pairs of experts, [E, E]."""
    total = held.sum(axis=1, keepdims=True)
    held = held / (total if single else np.minimum(total, 1.0))
    with_experts = pairs.copy()
    np.fill_diagonal(with_experts, held.sum(axis=1))
    return np.block([[with_experts, held], [held.T, np.eye(held.shape[1])]])
