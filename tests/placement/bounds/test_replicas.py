"""The bound with replicas, against all ways to fill the slots."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.layer_bound import bound_layer
from specmoe.placement.bounds.parts import parts_of
from specmoe.placement.bounds.replica_bound import replica_bound
from specmoe.placement.options import SolveOptions

sys.path.insert(0, str(Path(__file__).parent))
brute_force = import_module("brute_force")
sys.path.pop(0)

PLENTY = 10**7
SLOTS = [((2, 2, 2), 4), ((3, 2), 4), ((2, 2, 2), 5), ((3, 3), 5), ((1, 2, 1, 2), 4)]


def case_with_replicas(seed, slots, experts, top_k):
    return brute_force.random_case(np.random.default_rng(seed), experts=experts, top_k=top_k, slots=slots, tokens=40)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SLOTS), st.integers(1, 4), st.sampled_from([10**6, PLENTY]))
def test_no_bound_lies_above_the_best_cover_of_the_best_placement(seed, shape, top_k, work):
    case = case_with_replicas(seed, *shape, top_k)
    best = brute_force.best_cost_with_replicas(case)
    assert replica_bound(case, work, lambda: False) <= best
    assert bound_layer(case, SolveOptions(), work).with_homes <= best


@pytest.mark.parametrize("seed", range(4))
def test_it_comes_near_the_best_placement(seed):
    case = case_with_replicas(seed, (2, 2, 2), 5, 2)
    best = brute_force.best_cost_with_replicas(case)
    assert replica_bound(case, PLENTY, lambda: False) > 0.6 * best


def test_a_search_that_is_stopped_or_has_no_work_says_so_little():
    case = case_with_replicas(1, (2, 2, 2), 5, 2)
    assert replica_bound(case, 1000, lambda: False) == 0.0
    once = replica_bound(case, PLENTY, lambda: True)
    assert once < replica_bound(case, PLENTY, lambda: False)


@pytest.mark.parametrize("top_k", [1, 3, 4, 6])
def test_parts_are_subsets_and_the_whole_is_one_of_them(top_k):
    sets = np.sort(np.argsort(np.random.default_rng(top_k).random((20, 9)), axis=1)[:, :top_k], axis=1).astype(np.int32)
    parts = parts_of(sets, 9)
    assert len(np.unique(parts.has, axis=0)) == len(parts.has)
    for row, experts in zip(parts.part_of_set, sets, strict=True):
        assert (parts.has[row][:, np.setdiff1d(np.arange(9), experts)] == 0).all()
        assert parts.size[row].max() == top_k
        assert (parts.has[row].sum(axis=0)[experts] > 0).all()
