"""Requests go where `evaluate` assumes that they go."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.homes import dp_homes
from specmoe.runtime.requests import RequestScheduler, assign_requests

VOCABULARY = 20


@pytest.fixture(scope="module")
def plan(random_plan):
    rng = np.random.default_rng(0)
    bare = random_plan(rng, num_experts=8, ranks_per_node=(2, 1), top_k=2)
    # Few different values, so that there are ties.
    return replace(bare, token_affinity=rng.integers(0, 3, (VOCABULARY, 3)).astype(np.float16))


requests = st.lists(st.lists(st.integers(-1, VOCABULARY + 2), min_size=1, max_size=9), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(requests)
def test_requests_placed_one_by_one_have_the_homes_of_a_replayed_trace(plan, trace):
    scheduler = RequestScheduler(plan)
    placed = [scheduler.place(tokens[: (len(tokens) + 1) // 2], len(tokens)) for tokens in trace]
    request_ids = np.repeat(np.arange(len(trace)), [len(tokens) for tokens in trace]).astype(np.int32)
    token_ids = np.concatenate([np.array(tokens, dtype=np.int32) for tokens in trace])
    homes = dp_homes(request_ids, token_ids, plan.token_affinity, len(token_ids), plan.ep_size)
    assert [int(homes[request_ids == number][0]) for number in range(len(trace))] == placed


def test_a_list_of_prompts_is_placed_by_all_of_its_tokens(plan):
    strong = replace(plan, token_affinity=np.eye(VOCABULARY, 3, dtype=np.float16))
    assert assign_requests(strong, [[5, 5, 2], [1], [0, 0], [9]]) == [2, 1, 0, 1]


def test_a_part_of_the_ranks_is_filled_by_the_same_rule(plan):
    scheduler = RequestScheduler(replace(plan, token_affinity=None), range(1, 3))
    assert [scheduler.place([4, 4]) for _ in range(4)] == [1, 2, 1, 2]
