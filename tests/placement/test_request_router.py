"""Requests go where `evaluate` assumes that they go, whoever asks and however many at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specmoe
from specmoe.errors import UsageError
from specmoe.placement.homes import dp_homes
from specmoe.placement.request_router import RequestRouter, route_requests

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
def test_requests_routed_one_by_one_have_the_homes_of_a_replayed_trace(plan, trace):
    router = RequestRouter(plan)
    routed = [router.route(tokens[: (len(tokens) + 1) // 2], len(tokens)) for tokens in trace]
    request_ids = np.repeat(np.arange(len(trace)), [len(tokens) for tokens in trace]).astype(np.int32)
    token_ids = np.concatenate([np.array(tokens, dtype=np.int32) for tokens in trace])
    homes = dp_homes(request_ids, token_ids, plan.token_affinity, len(token_ids), plan.ep_size)
    assert [int(homes[request_ids == number][0]) for number in range(len(trace))] == routed


def test_a_list_of_prompts_is_routed_by_all_of_its_tokens(plan):
    strong = replace(plan, token_affinity=np.eye(VOCABULARY, 3, dtype=np.float16))
    assert route_requests(strong, [[5, 5, 2], [1], [0, 0], [9]]) == [2, 1, 0, 1]


def test_a_part_of_the_ranks_is_filled_by_the_same_rule(plan):
    router = RequestRouter(replace(plan, token_affinity=None), ranks=range(1, 3))
    assert [router.route([4, 4]) for _ in range(4)] == [1, 2, 1, 2]


def test_ranks_of_one_data_parallel_rank_pull_together(random_plan):
    bare = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(4,), top_k=2)
    affinity = np.zeros((2, 4), dtype=np.float16)
    affinity[0] = [1.0, 1.0, 1.5, 0.0]
    plan = replace(bare, token_affinity=affinity)
    assert RequestRouter(plan).route([0]) == 2
    assert RequestRouter(plan, dp_size=2).route([0]) == 0


def test_tokens_that_become_known_later_count(plan):
    router = RequestRouter(replace(plan, token_affinity=None))
    assert router.route([1, 2]) == 0
    router.add_tokens(1, 10)
    router.add_tokens(0, -1)
    assert router.tokens_of_rank == [1, 10, 0]
    assert [router.route([1]) for _ in range(2)] == [2, 0]
    router.reset()
    assert router.route([1]) == 0
    assert router.tokens_of_rank == [1, 0, 0]


def test_many_threads_lose_no_request(plan):
    router = RequestRouter(plan)
    with ThreadPoolExecutor(8) as pool:
        ranks = list(pool.map(lambda number: router.route([number % VOCABULARY] * 5), range(2000)))
    assert router.tokens_of_rank == [5 * ranks.count(rank) for rank in range(3)]
    assert sum(router.tokens_of_rank) == 10_000


def test_it_takes_a_path(plan, tmp_path):
    plan.save(tmp_path / "p.plan")
    assert specmoe.RequestRouter(tmp_path / "p.plan").route([]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dp_size": 2}, "divisor of the 3"), ({"dp_size": 0}, "divisor"), ({"ranks": range(2, 4)}, "consecutive ranks")],
)
def test_a_wrong_size_is_named(plan, arguments, message):
    with pytest.raises(UsageError, match=message):
        RequestRouter(plan, **arguments)


def test_a_plan_for_tp_and_a_rank_that_is_not_there_are_refused(plan):
    with pytest.raises(UsageError, match="solved with --attention dp"):
        RequestRouter(replace(plan, attention="tp", token_affinity=None))
    with pytest.raises(UsageError, match="0 to 2 was expected"):
        RequestRouter(plan).add_tokens(3, 1)
