"""`--robust`: the plan whose worst domain is best, among those for several mixtures of the profile's domains.

Multiplicative weights: each turn solves for a mixture, replays the profile, and gives more weight to the domains whose
tokens cost more than the mean. A mixture repeats or leaves out tokens within their requests, so that a request stays in
one fold and what is known of it on arrival keeps its proportions. Loads are judged on the profile itself: a plan for a
mixture that breaks the cap there is left aside, so the plain plan is the worst that can come out.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import UsageError
from specmoe.placement.homes import homes_of
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.objective import objective_of
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import measured
from specmoe.placement.solvers.feasibility import heaviest_of_layer
from specmoe.placement.solvers.load_drift import expected_imbalance
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

Method = Callable[[RoutingProfile, Topology, SolveOptions], PlacementPlan]

_TURNS = 3
# A domain that costs 5 % more than the mean doubles its weight in a turn, which is the most that it can gain.
_STEP, _MOST_GAIN = 14.0, 2.0


def solve_robustly(method: Method, profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan with the least worst domain; raises `UsageError` where the profile does not tell domains apart."""
    domain_ids = None if profile.sample is None else profile.sample.domain_ids
    domains = np.zeros(0) if domain_ids is None else np.unique(domain_ids)
    if domain_ids is None or len(domains) < 2:
        raise UsageError(
            f"robust needs a profile whose tokens belong to several domains, this one has {len(domains)}; "
            "profile several data sets together, or solve without robust"
        )
    plain = method(profile, topology, options)
    losses = domain_losses(plan=plain, profile=profile)
    allowed = max(options.max_imbalance, float(heaviest_of_layer(plain, profile).max()))
    found, weight = [(plain, losses)], np.ones(len(domains))
    for turn in range(_TURNS):
        if options.is_over:
            break
        gain = np.exp(_STEP * (losses / max(losses.mean(), 1e-12) - 1.0))
        weight = weight * np.clip(gain, 1.0 / _MOST_GAIN, _MOST_GAIN)
        mixture = reweighted(profile, weight[np.searchsorted(domains, domain_ids)], options.seed + turn)
        plan = _judged(method(mixture, topology, options), profile)
        losses = domain_losses(plan=plan, profile=profile)
        if heaviest_of_layer(plan, profile).max() <= allowed:
            found.append((plan, losses))
    best, least = min(found, key=lambda pair: float(pair[1].max()))
    note = {"domains": domains.tolist(), "objective": least.tolist(), "plain_objective": found[0][1].tolist()}
    return replace(best, predicted={**best.predicted, "robust": note})


def domain_losses(*, plan: PlacementPlan, profile: RoutingProfile) -> NDArray[np.float64]:
    """float64 [D]: the objective on the tokens of each of the profile's domains, with the homes of the whole trace."""
    sample = profile.require_sample("judging domains")
    assert sample.domain_ids is not None
    homes = homes_of(plan, sample)
    losses = []
    for domain in np.unique(sample.domain_ids):
        rows = np.flatnonzero(sample.domain_ids == domain)
        metrics = mean_metrics(measure_plan(plan, rows_of(sample, rows), homes[:, rows]))
        losses.append(objective_of(metrics, plan.topology))
    return np.array(losses)


def reweighted(profile: RoutingProfile, weight: NDArray[np.float64], seed: int) -> RoutingProfile:
    """The profile of a sample that has each token about `weight` times, float64 [T], and as many tokens in all."""
    times = weight / weight.mean()
    drawn = np.floor(times + np.random.default_rng(seed).random(len(times))).astype(np.int64)
    return profile_of_rows(profile, np.repeat(np.arange(len(times)), drawn))


def profile_of_rows(profile: RoutingProfile, rows: NDArray[np.int64]) -> RoutingProfile:
    """The profile of these rows of the sample, in this order and as often as they are named."""
    chosen = rows_of(profile.require_sample("choosing tokens"), rows)
    counts = [
        np.bincount(ids.ravel(), minlength=profile.num_logical_experts) for ids in chosen.expert_ids.swapaxes(0, 1)
    ]
    return RoutingProfile(
        layer_ids=profile.layer_ids,
        expert_counts=np.stack(counts).astype(np.int64),
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        num_tokens=chosen.num_tokens,
        vocab_size=profile.vocab_size,
        num_expert_groups=profile.num_expert_groups,
        sample=chosen,
        model_fingerprint=profile.model_fingerprint,
        source=profile.source,
    )


def _judged(plan: PlacementPlan, profile: RoutingProfile) -> PlacementPlan:
    """A mixture's plan as one of the profile: measured on it; what was expected of the mixture left out."""
    own = replace(plan, profile_fingerprint=profile.fingerprint, predicted={})
    imbalance = expected_imbalance(own, profile.require_sample("measuring a plan"))
    judged = measured(own, profile)
    return replace(judged, predicted={**judged.predicted, "held_out_load_imbalance": imbalance})


def rows_of(sample: RoutingSample, rows: NDArray[np.int64]) -> RoutingSample:
    """A sample of these rows, in this order."""
    arrays: dict[str, Any] = {field.name: getattr(sample, field.name) for field in fields(sample)}
    chosen: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
    return RoutingSample(**chosen)
