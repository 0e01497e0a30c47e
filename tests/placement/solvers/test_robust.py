"""`robust`: better on the worst domain than the plain plan, under the same cap; clear where there are no domains."""

from dataclasses import replace

import numpy as np
import pytest

from specmoe.errors import UsageError
from specmoe.placement.check import check_plan
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.solve import solve
from specmoe.placement.solvers.domain_mixtures import domain_losses, halves_by_domain, mixture
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

EXPERTS, REQUEST_TOKENS = 8, 20


def make_profile(requests_of_domain=(40, 16), kept=(1.0, 0.8, 0.6, 0.4), seed=0):
    """Two domains that pair the experts differently: e with e + 4 in the large one, with its neighbour in the other,
    there in layer l only with probability kept[l].
    """
    rng = np.random.default_rng(seed)
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
OTHER = make_profile((80, 80), seed=1)
DOMAINS = np.array([0, 1])
ASKED = {"attention": "tp", "max_imbalance": 1.4, "bound_seconds": 0}


def test_losses_of_domains_average_to_the_objective():
    plan = solve(PROFILE, 4, attention="tp", max_imbalance=1.3, bound_seconds=0)
    losses = domain_losses(plan=plan, profile=PROFILE, domains=DOMAINS)
    tokens = np.bincount(PROFILE.sample.domain_ids)
    measured = mean_metrics(measure_plan(plan, PROFILE.sample)).remote_copies_per_token
    assert np.average(losses, weights=tokens) == pytest.approx(measured)


@pytest.mark.parametrize("extra_slots", [0, 1])
def test_the_worst_domain_of_other_requests_costs_less_than_under_the_plain_plan(extra_slots):
    plain, robust = (solve(PROFILE, 4, robust=mode, extra_slots=extra_slots, **ASKED) for mode in (False, True))
    check_plan(robust, PROFILE, max_imbalance=1.4, extra_slots=extra_slots).require_legal()
    worst = [domain_losses(plan=plan, profile=OTHER, domains=DOMAINS).max() for plan in (plain, robust)]
    assert worst[1] < 0.97 * worst[0]
    note = robust.predicted["robust"]
    assert not note["is_plain"]
    assert note["weight"][1] > note["weight"][0]
    assert note["objective"] == pytest.approx(domain_losses(plan=robust, profile=PROFILE, domains=DOMAINS).tolist())
    assert max(note["held_out_objective"]) < max(note["plain_held_out_objective"])
    assert robust.profile_fingerprint == PROFILE.fingerprint


def test_domains_alike_get_the_plain_plan():
    alike = replace(PROFILE.sample, domain_ids=(np.arange(56) % 2).astype(np.int16).repeat(REQUEST_TOKENS))
    profile = replace(PROFILE, sample=alike)
    robust = solve(profile, 4, robust=True, **ASKED)
    assert robust.predicted["robust"]["is_plain"]
    assert robust.predicted["robust"]["weight"] == [1.0, 1.0]
    assert np.array_equal(robust.physical_to_logical, solve(profile, 4, **ASKED).physical_to_logical)


def test_a_layers_caps_are_on_the_loads_that_were_asked_for():
    loads = np.arange(1.0, 4 * EXPERTS + 1).reshape(4, EXPERTS)
    machine = Machine.of(Topology.single_node(4), SolveOptions(expert_loads=loads), EXPERTS, 1.05)
    problem = LayerProblem.of(PROFILE, 2, machine)
    assert problem.load == pytest.approx(loads[2] * 2 * PROFILE.sample.num_tokens / loads[2].sum())


def test_halves_have_half_of_every_domains_requests_each():
    halves = halves_by_domain(PROFILE, seed=3)
    requests = [np.unique(half.sample.request_ids) for half in halves]
    assert np.array_equal(np.sort(np.concatenate(requests)), np.arange(56))
    assert [np.count_nonzero(half >= 40) for half in requests] == [8, 8]


def test_a_mixture_keeps_requests_whole_and_weighs_domains():
    mixed = mixture(PROFILE, DOMAINS, np.array([1.0, 3.0]), seed=0).sample
    share = np.bincount(mixed.domain_ids) / mixed.num_tokens
    assert share[1] == pytest.approx(48 / 88, abs=0.02)
    assert mixed.num_tokens == pytest.approx(PROFILE.sample.num_tokens, rel=0.05)
    assert len(np.unique(mixed.request_ids)) == 56


def test_domains_of_few_requests_are_refused():
    few = make_profile((40, 3))
    with pytest.raises(UsageError, match="at least 4 requests each, this profile has 1"):
        solve(few, 4, robust=True)


def test_a_profile_of_one_domain_is_refused():
    one = replace(PROFILE.sample, domain_ids=np.zeros_like(PROFILE.sample.domain_ids))
    with pytest.raises(UsageError, match="several domains, this one has 1"):
        solve(replace(PROFILE, sample=one), 4, robust=True)
    with pytest.raises(UsageError, match="this one has 0"):
        solve(replace(PROFILE, sample=replace(one, domain_ids=None)), 4, robust=True)


def test_a_proof_of_the_mean_and_robustness_exclude_each_other():
    with pytest.raises(UsageError, match="use method 'auto'"):
        solve(PROFILE, 4, method="ilp", robust=True)
