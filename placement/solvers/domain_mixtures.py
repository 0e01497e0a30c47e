"""Mixtures of a profile's domains, and what they are judged on: halves of the requests, every domain in both.

A mixture repeats or leaves out tokens within their requests, so that a request keeps what is known of it on arrival
in proportion.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import UsageError
from specmoe.placement.homes import homes_of, request_starts
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.objective import objective_of
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.chosen_rows import profile_of_rows
from specmoe.profiler.routing_profile import RoutingProfile

# A domain of fewer requests cannot be judged: half of them must stand for the other half.
_FEWEST_REQUESTS = 4


def judged_domains(profile: RoutingProfile) -> NDArray[np.int64]:
    """int64 [D], increasing: the domains with requests enough; raises `UsageError` where they are not several."""
    sample = profile.sample
    domain_ids = None if sample is None else sample.domain_ids
    if sample is None or domain_ids is None:
        raise UsageError(_refusal("a profile whose tokens belong to several domains, this one has 0"))
    starts = request_starts(sample.request_ids, sample.num_tokens)
    domains, requests = np.unique(domain_ids[starts], return_counts=True)
    judged = domains[requests >= _FEWEST_REQUESTS]
    if len(domains) < 2:
        raise UsageError(_refusal(f"a profile whose tokens belong to several domains, this one has {len(domains)}"))
    if len(judged) < 2:
        raise UsageError(
            _refusal(f"several domains of at least {_FEWEST_REQUESTS} requests each, this profile has {len(judged)}")
        )
    return judged.astype(np.int64)


def _refusal(what: str) -> str:
    return f"robust needs {what}; profile several data sets together, or solve without robust"


def halves_by_domain(profile: RoutingProfile, seed: int) -> tuple[RoutingProfile, RoutingProfile]:
    """Two profiles of half of each domain's requests, drawn at random, in trace order."""
    sample = profile.require_sample("halving requests")
    assert sample.domain_ids is not None
    starts = request_starts(sample.request_ids, sample.num_tokens)
    drawn = np.random.default_rng(seed).permutation(len(starts))
    by_domain = drawn[np.argsort(sample.domain_ids[starts][drawn], kind="stable")]
    is_first = np.zeros(len(starts), dtype=np.bool_)
    is_first[by_domain[::2]] = True
    is_first_half = np.repeat(is_first, np.diff(starts, append=sample.num_tokens))
    return profile_of_rows(profile, np.flatnonzero(is_first_half)), profile_of_rows(
        profile, np.flatnonzero(~is_first_half)
    )


def mixture(
    profile: RoutingProfile, domains: NDArray[np.int64], weight: NDArray[np.float64], seed: int
) -> RoutingProfile:
    """The profile of a sample that has each token of `domains` about `weight` times, both [D], those of others as
    often as the mean token, and as many tokens in all.
    """
    sample = profile.require_sample("mixing domains")
    assert sample.domain_ids is not None
    place = np.minimum(np.searchsorted(domains, sample.domain_ids), len(domains) - 1)
    is_judged = domains[place] == sample.domain_ids
    times = np.where(is_judged, weight[place], weight[place][is_judged].mean())
    times = times / times.mean()
    drawn = np.floor(times + np.random.default_rng(seed).random(len(times))).astype(np.int64)
    return profile_of_rows(profile, np.repeat(np.arange(len(times)), drawn))


def domain_losses(*, plan: PlacementPlan, profile: RoutingProfile, domains: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [D]: the objective on the tokens of each of `domains`, with the homes of the whole trace."""
    sample = profile.require_sample("judging domains")
    homes = homes_of(plan, sample)
    losses = []
    for domain in domains:
        rows = np.flatnonzero(sample.domain_ids == domain)
        metrics = mean_metrics(measure_plan(plan, sample.rows(rows), homes[:, rows]))
        losses.append(objective_of(metrics, plan.topology))
    return np.array(losses)
