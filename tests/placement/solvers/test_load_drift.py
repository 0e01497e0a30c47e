"""Loads on new requests: redraws count by hand, agree with fresh requests, and choose the margin of a search."""

import numpy as np
import pytest

from specmoe.placement.baselines.linear import linear
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.solvers.load_drift import Redraws, expected_heaviest, expected_imbalance
from specmoe.placement.solvers.margins import Trial, best_trial, ceiling_of, margins_for
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


def sample_of(rng, requests, experts=8):
    """Requests of 30 tokens, each drawn to two experts of its own."""
    favourites = rng.integers(experts, size=(requests, 2)).repeat(30, axis=0)
    ids = np.where(rng.random((len(favourites), 2)) < 0.5, favourites, rng.integers(experts, size=(len(favourites), 2)))
    ids[:, 1] = np.where(ids[:, 1] == ids[:, 0], (ids[:, 0] + 1) % experts, ids[:, 1])
    request_ids = np.arange(requests, dtype=np.int32).repeat(30)
    return RoutingSample(expert_ids=ids[:, None].astype(np.uint8), request_ids=request_ids)


def test_a_redraw_counts_each_request_as_often_as_it_was_drawn():
    sample = sample_of(np.random.default_rng(0), 12)
    redraws = Redraws.of(sample, seed=1)
    assert redraws.times.sum(axis=1).tolist() == [12.0] * len(redraws.times)
    pairs = redraws.pairs(sample.expert_ids[:, 0], 8)
    for times, counted in zip(redraws.times[:5], pairs, strict=False):
        tokens = np.repeat(sample.expert_ids[:, 0], times.astype(int)[sample.request_ids], axis=0)
        assert np.array_equal(np.bincount(tokens.ravel(), minlength=8), counted)


def test_the_mean_over_a_redraw_is_over_its_tokens():
    sample = RoutingSample(expert_ids=np.zeros((4, 1, 1), np.uint8), request_ids=np.array([0, 1, 1, 1], np.int32))
    redraws = Redraws.of(sample, seed=1)
    means = {(2, 0): 8.0, (1, 1): 2.75, (0, 2): 1.0}
    expected = [means[tuple(times)] for times in redraws.times.astype(int).tolist()]
    assert redraws.means(np.array([8.0, 0.0, 1.0, 2.0])).tolist() == expected


def test_without_requests_runs_of_tokens_are_drawn_and_none_is_lost():
    expert_ids = np.zeros((5000, 1, 1), dtype=np.uint8)
    redraws = Redraws.of(RoutingSample(expert_ids=expert_ids), seed=0)
    assert redraws.times.shape[1] <= 2048
    assert len(redraws.block_of_token) == 5000
    assert redraws.pairs(expert_ids[:, 0], 1).mean() == pytest.approx(5000, rel=0.01)


def test_the_expected_imbalance_is_that_of_fresh_requests():
    rng = np.random.default_rng(2)
    sample = sample_of(rng, 100)
    profile = RoutingProfile(
        layer_ids=np.zeros(1, dtype=np.int32),
        expert_counts=np.bincount(sample.expert_ids.ravel(), minlength=8)[None].astype(np.int64),
        num_logical_experts=8,
        top_k=2,
        num_tokens=sample.num_tokens,
        sample=sample,
    )
    plan = linear(profile, Topology.single_node(4), SolveOptions())
    fresh = [mean_metrics(measure_plan(plan, sample_of(rng, 100))).load_imbalance for _ in range(60)]
    assert expected_imbalance(plan, sample) == pytest.approx(np.median(fresh), abs=0.05)


def test_the_heaviest_rank_is_judged_by_its_speed():
    redrawn, place = np.array([[6.0, 2.0, 4.0]]), np.array([0, 0, 1], dtype=np.int32)
    assert expected_heaviest(redrawn, place, np.ones(2)) == pytest.approx(8 / 6)
    assert expected_heaviest(redrawn, place, np.array([2.0, 1.0])) == pytest.approx(1.0)


def trials(*pairs):
    return [Trial(found=index, copies=copies, heaviest=heaviest) for index, (copies, heaviest) in enumerate(pairs)]


def test_the_cheapest_trial_that_keeps_the_cap_is_taken():
    assert best_trial(trials((1.5, 1.03), (1.4, 1.05), (1.2, 1.06)), 1.05).found == 1


def test_where_no_trial_keeps_the_cap_copies_are_weighed_against_load():
    assert best_trial(trials((2.0, 1.08), (1.9, 1.10)), 1.05).found == 1
    assert best_trial(trials((2.0, 1.06), (1.99, 1.10)), 1.05).found == 0


def test_margins_are_parts_of_what_the_cap_allows():
    assert ceiling_of(0.5, 1.05) == pytest.approx(1.025)
    assert max(margins_for(32, 32)) == 1.0
    assert len(margins_for(36, 32)) == 1
