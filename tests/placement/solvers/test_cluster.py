"""The parts of `cluster`: the exact assignment under a cap, and the clusters that it starts from."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from specmoe.placement.solvers.capped_assignment import capped_assignment
from specmoe.placement.solvers.co_clusters import co_clusters, coactivation_pull, counts_of_rows
from specmoe.placement.solvers.even_placement import Ranks, even_placement


def test_without_a_cap_the_assignment_gains_as_much_as_any() -> None:
    rng = np.random.default_rng(0)
    wanted, slots = rng.random((6, 3)), np.array([3, 2, 1], dtype=np.int32)
    placed = capped_assignment(wanted, np.ones(6), slots, np.ones(3), np.inf)
    best = max(wanted[np.arange(6), list(order)].sum() for order in itertools.permutations([0, 0, 0, 1, 1, 2]))
    assert wanted[np.arange(6), placed].sum() == pytest.approx(best)


def test_under_a_cap_almost_the_best_of_all_placements_is_found() -> None:
    every = np.array(sorted(set(itertools.permutations([0, 0, 0, 1, 1, 1, 2, 2, 2]))))
    reached = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        wanted, load = rng.random((9, 3)), rng.integers(5, 25, size=9).astype(float)
        heaviest = np.stack([(load * (every == rank)).sum(axis=1) for rank in range(3)]).max(axis=0)
        ceiling = max(1.1 * load.sum() / 3, heaviest.min())
        best = wanted[np.arange(9), every].sum(axis=1)[heaviest <= ceiling].max()
        placed = capped_assignment(wanted, load, np.full(3, 3, dtype=np.int32), np.ones(3), ceiling)
        assert np.bincount(placed, weights=load).max() <= ceiling
        reached.append(wanted[np.arange(9), placed].sum() / best)
    assert min(reached) > 0.93
    assert np.mean(reached) > 0.995


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 3))
def test_a_cap_that_loads_alone_can_keep_is_kept(seed: int, ranks: int, free: int) -> None:
    rng = np.random.default_rng(seed)
    experts = 4 * ranks - min(free, ranks - 1)
    load, speed = rng.integers(5, 40, size=experts), rng.choice([1.0, 1.3], size=ranks)
    slots, anywhere = np.full(ranks, 4, dtype=np.int32), np.zeros(4 * ranks, dtype=np.int32)
    places = Ranks(slots=slots, speed=speed, region=anywhere[:ranks], home=anywhere)
    counts = np.pad(load, (0, 4 * ranks - experts))
    most_even = even_placement(counts, np.ones(4 * ranks, dtype=np.int64), places).heaviest
    ceiling = (most_even + 1e-6) * load.sum() / speed.sum()
    placed = capped_assignment(rng.random((experts, ranks)), load.astype(float), slots, speed, ceiling)
    assert np.bincount(placed, minlength=ranks).max() <= 4
    assert (np.bincount(placed, weights=load, minlength=ranks) / speed).max() <= ceiling * (1 + 1e-9)


def test_the_cheapest_exchange_makes_room() -> None:
    # Ranks want their first two experts, but both hot ones want rank 0: expert 1 gives up less than expert 0.
    wanted = np.array([[9.0, 0.0], [5.0, 4.0], [0.0, 3.0], [0.0, 9.0]])
    load = np.array([10.0, 10.0, 1.0, 1.0])
    placed = capped_assignment(wanted, load, np.array([2, 2], dtype=np.int32), np.ones(2), 12.0)
    assert placed.tolist() == [0, 1, 0, 1]


def test_requests_of_a_topic_share_a_cluster() -> None:
    rng = np.random.default_rng(1)
    topic = rng.permutation(np.arange(40) % 2)
    tokens = np.repeat(np.arange(40, dtype=np.int32), 6)
    expert_ids = (rng.random((240, 4)).argsort(axis=1)[:, :2] + 4 * topic[tokens][:, None]).astype(np.uint8)
    counts = counts_of_rows(tokens, expert_ids, 9)
    assert counts.sum() == 480
    assert counts.toarray()[7].tolist() == np.bincount(expert_ids[42:48].ravel(), minlength=9).tolist()
    labels = co_clusters(counts, 2, 0)
    assert (labels == topic).all() or (labels != topic).all()


@pytest.mark.parametrize(("rows", "clusters"), [(1, 3), (3, 3), (5, 1)])
def test_fewer_rows_than_clusters_and_a_single_cluster_are_no_failure(rows: int, clusters: int) -> None:
    labels = co_clusters(csr_array(np.ones((rows, 4))), clusters, 0)
    assert labels.tolist() == [row % clusters for row in range(rows)]


def test_experts_that_serve_the_same_tokens_are_pulled_to_one_place() -> None:
    pairs = np.array([[0, 3], [1, 2]] * 20, dtype=np.uint8)
    nearest = coactivation_pull(pairs, 4, 2, 0).argmax(axis=1)
    assert nearest[0] == nearest[3] != nearest[1] == nearest[2]
