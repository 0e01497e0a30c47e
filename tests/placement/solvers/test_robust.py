"""`robust`: better on the worst domain than the plain plan, under the same cap; clear where there are no domains."""

from dataclasses import replace

import numpy as np
import pytest

from specmoe.errors import UsageError
from specmoe.placement.check import check_plan
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.solve import solve
from specmoe.placement.solvers.robust import domain_losses, reweighted
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

EXPERTS, REQUEST_TOKENS = 8, 20


def make_profile(requests_of_domain=(40, 16), kept=(1.0, 0.8, 0.6, 0.4)):
    """Two domains that pair the experts differently: e with e + 4 in the large one, with its neighbour in the other,
    there in layer l only with probability kept[l].
    """
    rng = np.random.default_rng(0)
    domain = np.repeat(np.arange(len(requests_of_domain)), requests_of_domain).repeat(REQUEST_TOKENS)
    first = rng.integers(EXPERTS, size=len(domain))
    layers = []
    for probability in kept:
        anywhere = (first + rng.integers(1, EXPERTS, size=len(first))) % EXPERTS
        neighbour = np.where(rng.random(len(first)) < probability, first ^ 1, anywhere)
        layers.append(np.stack([first, np.where(domain == 0, (first + 4) % EXPERTS, neighbour)], axis=1))
    expert_ids = np.stack(layers, axis=1).astype(np.uint8)
    counts = [np.bincount(ids.ravel(), minlength=EXPERTS) for ids in expert_ids.swapaxes(0, 1)]
    return RoutingProfile(
        layer_ids=np.arange(len(kept), dtype=np.int32),
        expert_counts=np.stack(counts).astype(np.int64),
        num_logical_experts=EXPERTS,
        top_k=2,
        num_tokens=len(domain),
        vocab_size=EXPERTS,
        sample=RoutingSample(
            expert_ids=expert_ids,
            token_ids=first.astype(np.int32),
            request_ids=np.arange(sum(requests_of_domain), dtype=np.int32).repeat(REQUEST_TOKENS),
            domain_ids=domain.astype(np.int16),
        ),
    )


PROFILE = make_profile()


def test_losses_of_domains_average_to_the_objective():
    plan = solve(PROFILE, 4, attention="tp", max_imbalance=1.3, bound_seconds=0)
    losses, tokens = domain_losses(plan=plan, profile=PROFILE), np.bincount(PROFILE.sample.domain_ids)
    measured = mean_metrics(measure_plan(plan, PROFILE.sample)).remote_copies_per_token
    assert np.average(losses, weights=tokens) == pytest.approx(measured)


def test_the_worst_domain_costs_less_than_under_the_plain_plan():
    asked = {"attention": "tp", "max_imbalance": 1.4, "bound_seconds": 0}
    plain, robust = (solve(PROFILE, 4, robust=mode, **asked) for mode in (False, True))
    check_plan(robust, PROFILE, max_imbalance=1.4).require_legal()
    losses = domain_losses(plan=robust, profile=PROFILE)
    assert losses.max() < domain_losses(plan=plain, profile=PROFILE).max()
    assert robust.predicted["robust"]["objective"] == pytest.approx(losses.tolist())
    assert robust.profile_fingerprint == PROFILE.fingerprint


def test_a_mixture_keeps_requests_whole_and_weighs_domains():
    weight = np.where(PROFILE.sample.domain_ids == 1, 3.0, 1.0)
    mixture = reweighted(PROFILE, weight, seed=0).sample
    share = np.bincount(mixture.domain_ids) / mixture.num_tokens
    assert share[1] == pytest.approx(48 / 88, abs=0.02)
    assert mixture.num_tokens == pytest.approx(PROFILE.sample.num_tokens, rel=0.05)
    assert len(np.unique(mixture.request_ids)) == 56


def test_a_profile_of_one_domain_is_refused():
    one = replace(PROFILE.sample, domain_ids=np.zeros_like(PROFILE.sample.domain_ids))
    with pytest.raises(UsageError, match="several domains, this one has 1"):
        solve(replace(PROFILE, sample=one), 4, robust=True)
    with pytest.raises(UsageError, match="this one has 0"):
        solve(replace(PROFILE, sample=replace(one, domain_ids=None)), 4, robust=True)


def test_a_proof_of_the_mean_and_robustness_exclude_each_other():
    with pytest.raises(UsageError, match="use method 'auto'"):
        solve(PROFILE, 4, method="ilp", robust=True)
