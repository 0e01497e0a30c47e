"""The searches of one layer: exact where it can be counted by hand, legal always, never worse than where they start."""

import itertools

import numpy as np
import pytest

from specmoe.placement.options import SolveOptions
from specmoe.placement.serving import serve
from specmoe.placement.solvers.copies import Items, Network, add_copy, copies_from, costs_by_home, drop_copy, serve_set
from specmoe.placement.solvers.copy_gains import copy_gains
from specmoe.placement.solvers.cover_anneal import anneal_copies
from specmoe.placement.solvers.expert_sets import expert_sets, rows_by_expert
from specmoe.placement.solvers.home_prices import priced_shares
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.solvers.replicated_layer import settle
from specmoe.placement.solvers.swap_search import LoadCap, swap_search
from specmoe.placement.solvers.token_rows import TokenRows
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


def random_sets(rng, tokens, experts, top_k):
    return np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k].astype(np.uint8)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 3), (300, 12), (5, 1)])
def test_merged_sets_give_every_token_its_experts_back(experts, top_k):
    ids = random_sets(np.random.default_rng(0), 50, experts, top_k).astype(np.uint16)
    ids[25:] = ids[:25, ::-1]
    merged = expert_sets(ids, experts)
    assert np.array_equal(merged.sets[merged.set_of_token], np.sort(ids, axis=1))
    assert len(np.unique(merged.sets, axis=0)) == len(merged.sets)


@pytest.mark.parametrize("seed", range(3))
def test_swaps_find_the_best_placement_that_enumeration_finds(seed):
    rng = np.random.default_rng(seed)
    sets = random_sets(rng, 40, 6, 2).astype(np.int32)
    price, load = rng.random((40, 2)), rng.integers(5, 9, size=6).astype(float)
    cap = LoadCap(load=load, speed=np.ones(2), ceiling=1.1 * load.sum() / 2)

    def cost(place):
        touched = np.zeros((40, 2))
        touched[np.arange(40)[:, None], np.asarray(place)[sets]] = 1
        return (touched * price).sum()

    legal = [place for place in itertools.product((0, 1), repeat=6) if sum(place) == 3 and cap.is_kept(np.array(place))]
    found, reported = swap_search(
        sets, price, cap, np.array([0, 0, 0, 1, 1, 1], dtype=np.int32),
        kind=np.zeros(6, dtype=np.int32), overload_price=30.0, steps=100, patience=50, kicks=0, seed=0,
    )  # fmt: skip
    assert cap.is_kept(found)
    assert cost(found) == pytest.approx(min(map(cost, legal)))
    assert reported == pytest.approx(cost(found))


def test_a_part_of_a_pair_above_the_cap_is_not_worth_any_number_of_copies():
    # Experts that work together on a rank of their own cost half as much, but put 2,002 pairs where 2,001.6 may be.
    ids = np.array([[0, 1], [2, 3]] * 1000 + [[0, 1]], dtype=np.uint8)
    profile = RoutingProfile(
        layer_ids=np.zeros(1, dtype=np.int32),
        expert_counts=np.array([[1001, 1001, 1000, 1000]]),
        num_logical_experts=4,
        top_k=2,
        num_tokens=2001,
        sample=RoutingSample(expert_ids=ids[:, None]),
    )
    machine = Machine.of(Topology.single_node(2), SolveOptions(max_imbalance=1.0003), 4, 1.0003)
    problem = LayerProblem.of(profile, 0, machine)
    homes_of_set = np.array([[500.5, 500.5], [500.0, 500.0]])
    found = problem.search(homes_of_set, np.array([0, 0, 1, 1], dtype=np.int32))
    assert problem.cap.is_kept(found)
    assert (np.bincount(found[:2]) == 1).all()


@pytest.mark.parametrize(("kicks", "patience"), [(0, 300), (20, 10)])
def test_the_cost_of_many_swaps_adds_up_with_empty_places_and_slow_ranks(kicks, patience):
    rng = np.random.default_rng(7)
    sets = random_sets(rng, 500, 70, 5).astype(np.int32)
    price, load = rng.random((500, 6)), np.append(rng.integers(1, 9, size=70), [0, 0]).astype(float)
    cap = LoadCap(load=load, speed=np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.5]), ceiling=1.02 * load.sum() / 5.5)
    start = np.arange(72, dtype=np.int32) % 6
    found, reported = swap_search(
        sets, price, cap, start, kind=np.zeros(72, dtype=np.int32),
        overload_price=3.0, steps=300, patience=patience, kicks=kicks, seed=0,
    )  # fmt: skip
    touched = np.zeros((500, 6))
    touched[np.arange(500)[:, None], found[sets]] = 1
    filled = np.bincount(found, weights=load) / cap.speed
    assert reported == pytest.approx((touched * price).sum() + 3.0 * np.maximum(filled - cap.ceiling, 0).sum())
    assert np.bincount(found).tolist() == [12] * 6
    touched[:] = 0
    touched[np.arange(500)[:, None], start[sets]] = 1
    assert reported < 0.9 * (touched * price).sum()


def test_beginning_anew_near_the_best_placement_finds_more_than_as_many_random_starts():
    rng = np.random.default_rng(0)
    topics = np.argsort(rng.random((60, 96)), axis=1)[:, :9]
    sets = np.stack([rng.choice(topics[topic], size=6, replace=False) for topic in rng.integers(60, size=1500)])
    load = np.bincount(sets.ravel(), minlength=96).astype(float)
    cap = LoadCap(load=load, speed=np.ones(8), ceiling=1.1 * load.sum() / 8)

    def least(start, kicks):
        return swap_search(
            sets.astype(np.int32), np.ones((1500, 8)), cap, start, kind=np.zeros(96, dtype=np.int32),
            overload_price=3.0, steps=400, patience=20, kicks=kicks, seed=0,
        )[1]  # fmt: skip

    starts = [rng.permutation(np.arange(96, dtype=np.int32) % 8) for _ in range(64)]
    anew = [least(start, kicks=15) for start in starts[::16]]
    at_random = [min(least(start, kicks=0) for start in starts[first : first + 16]) for first in range(0, 64, 16)]
    assert np.mean(anew) < np.mean(at_random)


def test_copies_settle_by_the_loads_that_their_dispatch_gives():
    # By the nearest copy rank 1 would serve expert 0 alone, for homes 0 and 3; the dispatch shares it out.
    ids = np.repeat(np.array([0, 0, 1, 2], dtype=np.uint8), 100)
    profile = RoutingProfile(
        layer_ids=np.zeros(1, dtype=np.int32),
        expert_counts=np.array([[200, 100, 100]]),
        num_logical_experts=3,
        top_k=1,
        num_tokens=400,
        sample=RoutingSample(expert_ids=ids[:, None, None]),
    )
    machine = Machine(
        slots=np.ones(4, dtype=np.int32),
        speed=np.ones(4),
        node=np.zeros(4, dtype=np.int32),
        link=1.0 - np.eye(4),
        surcharge=0.0,
        max_imbalance=1.05,
        allowed_imbalance=1.05,
    )
    problem = LayerProblem.of(profile, 0, machine)
    homes_of_set = np.array([[100, 0, 0, 100], [100, 0, 0, 0], [0, 0, 0, 100]], dtype=float)
    holds = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]], dtype=np.bool_)
    copies = copies_from(holds)
    settle(problem, copies, homes_of_set, 0, ceiling=problem.cap.ceiling, overload_price=30.0)
    assert np.array_equal(copies.holds, holds)


def random_copies(rng, ranks, experts):
    holds = np.zeros((ranks, experts), dtype=np.bool_)
    holds[rng.integers(ranks, size=experts), np.arange(experts)] = True
    return copies_from(holds | (rng.random((ranks, experts)) < 0.2))


@pytest.mark.parametrize("cover", [False, True])
def test_sets_are_served_as_the_contract_says(cover):
    rng = np.random.default_rng(4)
    copies, node = random_copies(rng, 5, 12), np.array([0, 0, 1, 1, 1], dtype=np.int32)
    ids, homes = random_sets(rng, 60, 12, 4), rng.integers(5, size=60).astype(np.int32)
    expected = serve(ids, homes, copies.dispatch, copies.holds.astype(np.bool_), node, "cover" if cover else "static")
    served, score = np.zeros(4, dtype=np.int16), np.zeros(5, dtype=np.int64)
    for experts, home, ranks in zip(ids.astype(np.int32), homes, expected, strict=True):
        serve_set(experts, home, cover, copies, node, score, served)
        assert served.tolist() == ranks.tolist()


@pytest.mark.parametrize(("experts", "top_k", "ranks"), [(12, 4, 5), (40, 8, 20), (9, 1, 3)])
@pytest.mark.parametrize("surcharge", [0.0, 0.5])
def test_costs_by_home_count_what_the_contract_serves(experts, top_k, ranks, surcharge):
    rng = np.random.default_rng(6)
    copies, node = random_copies(rng, ranks, experts), np.arange(ranks, dtype=np.int32) // 3
    sets = np.sort(random_sets(rng, 50, experts, top_k), axis=1).astype(np.int32)
    cost = costs_by_home(sets, True, copies, Network(node, surcharge, np.ones(ranks)))
    # With an opinion of the table on single copies alone ties are the same; homes that hold none of a set share a cost.
    only = np.where(copies.num_holders == 1, copies.holds.argmax(axis=0), -1)
    table = np.where(copies.holds, np.arange(ranks)[:, None], only).astype(np.int32)
    for home in range(ranks):
        homes = np.full(50, home, dtype=np.int32)
        served = serve(sets.astype(np.uint8), homes, table, copies.holds.astype(np.bool_), node, "cover")
        others = [set(row.tolist()) - {home} for row in served]
        nodes = [{node[rank] for rank in row} - {node[home]} for row in others]
        exact = np.array([len(row) + surcharge * len(far) for row, far in zip(others, nodes, strict=True)])
        holds_one = copies.holds[home][sets].any(axis=1)
        assert np.allclose(cost[holds_one, home], exact[holds_one])
        assert abs(cost[:, home] - exact).max(initial=0) <= 1 + surcharge


def test_a_gain_is_what_the_copy_saves():
    rng = np.random.default_rng(8)
    copies = random_copies(rng, 4, 10)
    sets = np.sort(random_sets(rng, 30, 10, 3), axis=1).astype(np.int32)
    homes = np.sort(rng.integers(4, size=30)).astype(np.int32)
    items = Items(sets, rng.random(30), homes, *rows_by_expert(sets, 10))
    network = Network(np.zeros(4, dtype=np.int32), 0.0, np.ones(4))

    def cost():
        return items.weight @ costs_by_home(sets, True, copies, network)[np.arange(30), homes]

    gains, before = copy_gains(items, copies, network), cost()
    for rank, expert in zip(*np.nonzero(copies.holds == 0), strict=True):
        add_copy(copies, expert, rank)
        assert gains[rank, expert] == pytest.approx(before - cost())
        drop_copy(copies, expert, rank)


# With 64 ranks the shifts of loads take too much memory to be kept.
@pytest.mark.parametrize(("ranks", "proposals", "left"), [(3, 3000, 0.2), (64, 100_000, 0.9)])
def test_annealing_saves_copies_and_keeps_slots_cap_and_every_expert(ranks, proposals, left):
    rng, experts, tokens = np.random.default_rng(5), 3 * ranks, 100 * ranks
    topic = rng.integers(ranks, size=tokens)
    of_topic = np.arange(experts).reshape(3, ranks).T
    ids = np.stack([rng.permutation(of_topic[t])[:2] for t in topic]).astype(np.int32)
    order = np.argsort(topic, kind="stable")
    offsets, rows = rows_by_expert(ids[order], experts)
    items = Items(ids[order], np.ones(tokens), topic[order].astype(np.int32), offsets, rows)
    network = Network(np.zeros(ranks, dtype=np.int32), 0.0, np.ones(ranks))
    holds = np.zeros((ranks, experts), dtype=np.bool_)
    holds[np.arange(experts) // 3, np.arange(experts)] = True
    holds[np.arange(ranks), (np.arange(ranks) * 3 + 3) % experts] = True
    copies = copies_from(holds)

    def cost():
        by_home = costs_by_home(items.experts, True, copies, network)
        return by_home[np.arange(tokens), items.home].sum()

    before = cost()
    anneal_copies(items, copies, network, 1.3 * 200, 3.0, proposals, 5.0, 0.01, True, np.zeros(0), 0)
    assert cost() < left * before
    assert copies.holds.sum(axis=1).tolist() == [4] * ranks
    assert copies.holds.sum(axis=0).min() == 1
    assert copies.num_holders.tolist() == copies.holds.sum(axis=0).tolist()


def test_priced_homes_are_cheap_and_even():
    cost = np.array([[0.0, 1.0], [0.0, 0.9], [0.0, 0.2], [0.0, 0.1]])
    share = priced_shares(cost, np.ones(4), np.array([0.5, 0.5]), np.zeros(2), 0.01, 500)
    assert share[:, 0].round().tolist() == [1, 1, 0, 0]


def test_a_held_out_mean_leaves_the_tokens_own_requests_out():
    requests = np.repeat(np.arange(16), 2).astype(np.int32)
    tokens = np.tile([7, 9], 16).astype(np.int32)
    tokens[1] = 3
    sample = RoutingSample(expert_ids=np.zeros((32, 1, 1), dtype=np.uint8), token_ids=tokens, request_ids=requests)
    rows = TokenRows.of(sample, seed=0)
    assert rows.row_of_token[1] == rows.num_pairs
    total = np.zeros((rows.num_pairs, 2))
    total[rows.raw_row_of_token[0]] = 100.0
    means = rows.held_out_means(total, prior_tokens=1e-9)
    same_fold, other = rows.raw_row_of_token[0], rows.raw_row_of_token[2::2]
    assert means[same_fold].max() < 1e-6
    assert means[[row for row in other if row != same_fold]].min() > 1.0
