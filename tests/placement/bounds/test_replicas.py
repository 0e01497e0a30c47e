"""The bound with replicas, against all ways to fill the slots."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.bounds.layer_bound import bound_layer
from specmoe.placement.bounds.witness_bound import witness_bound
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
    assert witness_bound(case, work, lambda: False) <= best
    assert bound_layer(case, SolveOptions(), work).with_homes <= best
