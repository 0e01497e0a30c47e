"""Annealing single copies by swaps: near the best where searches from random placements are not, and legal always."""

import numpy as np
import pytest

from specmoe.placement.solve import solve
from specmoe.placement.solvers import layer_problem
from specmoe.placement.solvers import swap_anneal as annealing
from specmoe.placement.solvers.effort import annealed_swaps
from specmoe.placement.solvers.swap_anneal import swap_anneal
from specmoe.placement.solvers.swap_search import LoadCap

from .catalogue import topical

EXPERTS, RANKS = 64, 8


def teams(tokens, seed=100):
    """Sets of four experts of one team, the teams overlapping a little, and the teams: int [64]."""
    rng = np.random.default_rng(seed)
    team_of_expert = rng.permutation(np.repeat(np.arange(RANKS), EXPERTS // RANKS))
    members = np.argsort(team_of_expert, kind="stable").reshape(RANKS, -1)
    sets = np.array([rng.choice(members[rng.integers(RANKS)], size=4, replace=False) for _ in range(tokens)])
    strangers = rng.random(tokens) < 0.3
    sets[strangers, 0] = rng.integers(EXPERTS, size=int(strangers.sum()))
    return sets[[len(set(one)) == 4 for one in sets]].astype(np.int32), team_of_expert.astype(np.int32)


def cost(sets, place):
    return sum(len(set(ranks)) for ranks in place[sets])


def random_place(seed):
    ranks = np.repeat(np.arange(RANKS, dtype=np.int32), EXPERTS // RANKS)
    return np.random.default_rng(seed).permutation(ranks)


def even_cap(sets, slack=1.2):
    load = np.bincount(sets.ravel(), minlength=EXPERTS).astype(float)
    return LoadCap(load=load, speed=np.ones(RANKS), ceiling=slack * load.sum() / RANKS)


def annealed(sets, place, *, kind=None, proposals=20_000, seed=0):
    kind = np.zeros(EXPERTS, dtype=np.int32) if kind is None else kind
    price = np.ones((len(sets), RANKS))
    return swap_anneal(sets, price, even_cap(sets), place, kind=kind, proposals=proposals, seed=seed)


@pytest.mark.parametrize("seed", range(4))
def test_annealing_finds_the_teams_from_a_random_placement(seed):
    sets, team = teams(3000)
    place = random_place(seed)
    assert cost(sets, place) > 2 * cost(sets, team)
    assert cost(sets, annealed(sets, place, seed=seed)) <= 1.01 * cost(sets, team)


def test_the_load_cap_has_its_price():
    sets, team = teams(3000)
    load = np.bincount(sets.ravel(), minlength=EXPERTS).astype(float) * np.where(team < 4, 3.0, 1.0)
    cap = LoadCap(load=load, speed=np.ones(RANKS), ceiling=1.05 * load.sum() / RANKS)
    assert not cap.is_kept(team)
    kind, price = np.zeros(EXPERTS, dtype=np.int32), np.ones((len(sets), RANKS))
    found = swap_anneal(sets, price, cap, team, kind=kind, proposals=20_000, seed=0)
    above = np.maximum(np.bincount(found, weights=load) - cap.ceiling, 0.0).sum()
    assert above < 0.1 * np.maximum(np.bincount(team, weights=load) - cap.ceiling, 0.0).sum()


def test_every_rank_keeps_its_number_and_the_same_seed_gives_the_same_placement():
    sets, _ = teams(500)
    place = random_place(1)
    before = place.copy()
    first, again, other = (annealed(sets, place, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(place, before)
    assert np.array_equal(np.bincount(first), np.bincount(place))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_places_of_other_kinds_are_not_exchanged():
    sets, _ = teams(500)
    kind = (np.arange(EXPERTS) // 16).astype(np.int32)
    place = random_place(2)
    found = annealed(sets, place, kind=kind)
    assert not np.array_equal(found, place)
    for one in range(4):
        assert np.array_equal(np.sort(found[kind == one]), np.sort(place[kind == one]))


def test_some_stand_for_very_many_sets_and_cost_as_much(monkeypatch):
    sets, team = teams(3000)
    rng = np.random.default_rng(0)
    price = rng.integers(0, 5, size=(len(sets), RANKS)).astype(float) + 0.5
    monkeypatch.setattr(annealing, "_ANNEALED_SETS", 800)
    chosen, their_price = annealing._chosen(sets, price)
    assert len(chosen) == len(their_price) == 800
    assert len(np.unique(chosen, axis=0)) > 700
    assert their_price.sum() == pytest.approx(price.sum())
    assert cost(sets, annealed(sets, random_place(0), proposals=40_000)) <= 1.05 * cost(sets, team)


def test_sets_that_cost_nothing_are_left_out_and_where_none_costs_anything_all_is_well(monkeypatch):
    sets, _ = teams(3000)
    monkeypatch.setattr(annealing, "_ANNEALED_SETS", 800)
    price = np.zeros((len(sets), RANKS))
    price[::4, 1] = 2.0
    chosen, their_price = annealing._chosen(sets, price)
    assert np.array_equal(chosen, sets[::4])
    assert np.array_equal(their_price, price[::4])
    kind, one_rank = np.zeros(EXPERTS, dtype=np.int32), np.zeros(EXPERTS, dtype=np.int32)
    cap = LoadCap(load=np.ones(EXPERTS), speed=np.ones(1), ceiling=float(EXPERTS))
    found = swap_anneal(sets, np.zeros((len(sets), 1)), cap, one_rank, kind=kind, proposals=1000, seed=0)
    assert np.array_equal(found, one_rank)


@pytest.mark.parametrize(
    ("slots", "swaps"), [(32, 0), (48, 0), (64, 122_880), (128, 491_520), (192, 491_520), (256, 0)]
)
def test_placements_are_annealed_where_slots_are_many_and_not_too_many(slots, swaps):
    assert annealed_swaps(slots) == swaps


@pytest.mark.parametrize("attention", ["dp", "tp"])
@pytest.mark.parametrize(("experts", "extra_slots", "is_annealed"), [(56, 0, True), (32, 0, False), (56, 1, False)])
def test_solve_anneals_single_copies_of_many_experts(monkeypatch, attention, experts, extra_slots, is_annealed):
    proposed = []

    def spy(*arguments, proposals, **options):
        proposed.append(proposals)
        return swap_anneal(*arguments, proposals=proposals, **options)

    monkeypatch.setattr(layer_problem, "swap_anneal", spy)
    profile = topical(experts=experts, layers=1, tokens=60)
    solve(profile, 4, attention=attention, extra_slots=extra_slots, max_imbalance=2.0, bound_seconds=0)
    assert bool(proposed) == is_annealed
    assert all(one % annealed_swaps(experts) == 0 for one in proposed)
