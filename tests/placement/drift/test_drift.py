"""Drift tells chance from change, and says re-solve only where solving anew is worth it."""

from dataclasses import replace

import numpy as np
import pytest

import specmoe
from specmoe.errors import ArtifactError, MismatchError, UsageError
from specmoe.placement.drift.distance import distance_by_chance, share_distance
from specmoe.placement.drift.drift import drift
from specmoe.placement.drift.halves import split_in_halves
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

E, K, L, LENGTH = 8, 2, 2, 10


def topical_profile(seed: int, pairs: np.ndarray, requests: int = 600) -> RoutingProfile:
    """Every request has a topic, and its tokens mostly use that topic's two experts; pairs: int [topics, 2]."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, len(pairs), requests).repeat(LENGTH)
    other = rng.permuted(np.tile(np.arange(E), (len(topic), 1)), axis=1)[:, :K]
    keeps = rng.random(len(topic)) < 0.9
    experts = np.where(keeps[:, None], pairs[topic], other)
    expert_ids = np.repeat(experts[:, None], L, axis=1).astype(np.uint8)
    counts = np.stack([np.bincount(expert_ids[:, layer].ravel(), minlength=E) for layer in range(L)])
    return RoutingProfile(
        layer_ids=np.arange(L, dtype=np.int32),
        expert_counts=counts.astype(np.int64),
        num_logical_experts=E,
        top_k=K,
        num_tokens=len(topic),
        sample=RoutingSample(
            expert_ids=expert_ids,
            token_ids=topic.astype(np.int32),
            request_ids=np.arange(requests, dtype=np.int32).repeat(LENGTH),
        ),
        vocab_size=len(pairs),
    )


NEIGHBOURS = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
STRANGERS = np.array([[0, 4], [1, 5], [2, 6], [3, 7]])


@pytest.fixture(scope="module")
def old() -> RoutingProfile:
    return topical_profile(0, NEIGHBOURS)


@pytest.fixture(scope="module")
def plan(old):
    return specmoe.solve(old, 2, best_effort=True)


def test_share_distance_by_hand():
    assert share_distance(np.array([[1, 1], [0, 4]]), np.array([[2, 2], [3, 1]])).tolist() == [0.0, 0.75]
    assert share_distance(np.zeros((1, 2), np.int64), np.array([[1, 0]])).tolist() == [0.0]


def test_other_requests_of_the_same_kind_are_within_chance(old):
    found = drift(old, topical_profile(1, NEIGHBOURS))
    assert found.by_chance is not None
    assert found.distance <= found.by_chance
    assert found.verdict == "keep"


def test_an_expert_that_took_over_is_more_than_chance(old):
    found = drift(old, topical_profile(1, NEIGHBOURS[[0, 0, 0, 1]]))
    assert found.by_chance is not None
    assert found.distance > 2 * found.by_chance
    assert found.verdict == "re-solve"


def test_chance_takes_whole_requests(old):
    """One request per topic and group: tokens alone would hide how much requests differ."""
    few = topical_profile(2, NEIGHBOURS, requests=8)
    by_request = distance_by_chance(few, few)
    sample = few.sample
    assert sample is not None
    alone = replace(sample, request_ids=np.arange(sample.num_tokens, dtype=np.int32))
    by_token = distance_by_chance(replace(few, sample=alone), replace(few, sample=alone))
    assert by_request is not None
    assert by_token is not None
    assert by_request > 3 * by_token


def test_the_same_kind_of_requests_keeps_the_plan(old, plan):
    found = drift(old, topical_profile(1, NEIGHBOURS), plan)
    assert found.verdict == "keep"
    assert found.plan is not None
    assert found.plan.kept is not None


def test_new_partners_ask_for_a_new_plan_though_no_expert_is_used_more(old, plan):
    new = topical_profile(1, STRANGERS)
    found = drift(old, new, plan)
    assert found.distance < 0.1
    assert found.verdict == "re-solve"
    assert found.plan is not None
    assert found.plan.kept is not None
    assert found.plan.solved_anew is not None
    assert found.plan.solved_anew.remote_copies_per_token < 0.8 * found.plan.kept.remote_copies_per_token
    unsolved = drift(old, new, plan, solve_anew=False)
    assert unsolved.verdict == "re-solve"
    assert unsolved.plan is not None
    assert unsolved.plan.solved_anew is None


def test_without_solving_anew_a_plan_is_not_held_to_the_profile_that_it_was_solved_from(old, plan):
    new = topical_profile(1, NEIGHBOURS)
    expected = plan.predicted["held_out_objective"]
    found = drift(old, new, plan, solve_anew=False)
    assert found.plan is not None
    assert found.plan.old_is_fit
    assert f"on other requests of the old kind its solver expected {expected:.3f}" in found.reason
    costly = found.plan.on_new.remote_copies_per_token
    generous = replace(plan, predicted={**plan.predicted, "held_out_objective": 2 * costly})
    mean = replace(plan, predicted={**plan.predicted, "held_out_objective": costly / 2})
    assert drift(old, new, generous, solve_anew=False).verdict == "keep"
    assert drift(old, new, mean, solve_anew=False).verdict == "re-solve"


def test_a_plan_without_an_expectation_is_held_to_its_own_profile_and_that_is_said(old, plan):
    bare = replace(plan, predicted={})
    assert "which flatters it" in drift(old, topical_profile(1, NEIGHBOURS), bare, solve_anew=False).reason
    assert "the new profile is the one that it was solved from" in drift(old, old, plan, solve_anew=False).reason
    other = replace(plan, profile_fingerprint="another")
    assert "on the old profile it has" in drift(old, old, other, solve_anew=False).reason


def test_halves_share_no_request_and_lose_none(old):
    first, second = split_in_halves(old, seed=0)
    requests = [set(half.sample.request_ids.tolist()) for half in (first, second)]
    assert len(requests[0]) == len(requests[1]) == 300
    assert not requests[0] & requests[1]
    np.testing.assert_array_equal(first.expert_counts + second.expert_counts, old.expert_counts)


def test_counts_alone_give_a_distance_and_no_chance(old):
    counts_only = replace(old, sample=None)
    found = drift(counts_only, counts_only)
    assert (found.distance, found.by_chance, found.pair_distance, found.verdict) == (0.0, None, None, "keep")


def test_too_few_requests_to_solve_anew_are_named(old, plan):
    with pytest.raises(ArtifactError, match="at least 8 are needed"):
        drift(old, topical_profile(1, NEIGHBOURS, requests=5), plan)


def test_profiles_of_different_models_are_refused(old):
    other = replace(old, layer_ids=np.array([1, 2], dtype=np.int32))
    with pytest.raises(MismatchError, match="layer ids"):
        drift(old, other)
    with pytest.raises(MismatchError, match="model fingerprints are a and b"):
        drift(replace(old, model_fingerprint="a"), replace(old, model_fingerprint="b"))


def test_a_tolerance_of_nothing_is_refused(old):
    with pytest.raises(UsageError, match="tolerance"):
        drift(old, old, tolerance=0.0)
