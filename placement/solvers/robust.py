"""`--robust`: the plan for the mixture of the profile's domains whose worst domain is best on other requests.

Multiplicative weights: each turn solves for a mixture on each half of the requests, replays the other half, and gives
more weight to the domains whose tokens cost more than the mean there. A mixture is better than the profile as it is
where its worst domain costs less on both halves. The best mixture is then solved for on all requests; where none is
better, the plan is the plain one. Caps are on the profile's loads whatever the mixture's are: copies are weighed by the
mixture, loads are not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.domain_mixtures import domain_losses, halves_by_domain, judged_domains, mixture
from specmoe.placement.solvers.feasibility import heaviest_of_layer
from specmoe.placement.solvers.finish_plan import finish_plan
from specmoe.placement.solvers.load_drift import expected_imbalance
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

Method = Callable[[RoutingProfile, Topology, SolveOptions], PlacementPlan]

_TURNS = 3
# A domain that costs 5 % more than the mean doubles its weight in a turn, which is the most that it can gain.
_STEP, _MOST_GAIN = 14.0, 2.0
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A mixture: weight, float64 [D], of the tokens of each domain; losses: float64 [2, D], what the domains of each
    half cost under a plan for the other half.
    """

    weight: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def loss(self) -> NDArray[np.float64]:
        """float64 [D], the mean of both halves."""
        mean: NDArray[np.float64] = self.losses.mean(axis=0)
        return mean

    def is_better_than(self, other: "_Trial") -> bool:
        """Whether the worst domain costs less on both halves: what one half alone says may be chance."""
        return bool((self.losses.max(axis=1) < other.losses.max(axis=1)).all())


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What all mixtures of a profile are solved with; domains: int64 [D], those that are judged."""

    method: Method
    topology: Topology
    options: SolveOptions
    domains: NDArray[np.int64]

    def plan_for(self, profile: RoutingProfile, weight: NDArray[np.float64]) -> PlacementPlan:
        """The plan for a mixture of the profile's domains, float64 [D], finished on the profile."""
        loads = profile.require_sample("mixing domains").expert_counts(profile.num_logical_experts)
        mixed = mixture(profile, self.domains, weight, self.options.seed)
        options = replace(self.options, expert_loads=loads.astype(np.float64))
        return finish_plan(self.method(mixed, self.topology, options), profile, self.topology, self.options)

    def trials(self, profile: RoutingProfile) -> list[_Trial]:
        """The profile as it is, then ever more weight for domains that cost more than the mean, while there is time."""
        halves, weight = halves_by_domain(profile, self.options.seed), np.ones(len(self.domains))
        found: list[_Trial] = []
        while not found or (len(found) <= _TURNS and not self.options.is_over):
            losses = []
            for fitted, judged in (halves, halves[::-1]):
                plan = self.plan_for(fitted, weight) if found else self.method(fitted, self.topology, self.options)
                losses.append(domain_losses(plan=plan, profile=judged, domains=self.domains))
            found.append(_Trial(weight=weight, losses=np.stack(losses)))
            loss = found[-1].loss
            gain = np.exp(_STEP * (loss / max(loss.mean(), 1e-12) - 1.0))
            weight = weight * np.clip(gain, 1.0 / _MOST_GAIN, _MOST_GAIN)
        return found


def solve_robustly(method: Method, profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan of the best mixture; raises `UsageError` where the profile does not have several domains to judge."""
    domains = judged_domains(profile)
    search = _Search(method=method, topology=topology, options=options, domains=domains)
    plain = method(profile, topology, options)
    as_it_is, *mixtures = search.trials(profile)
    allowed = max(options.max_imbalance, float(heaviest_of_layer(plain, profile).max())) * (1 + _TOLERANCE)
    plan, chosen = plain, as_it_is
    better = [trial for trial in mixtures if trial.is_better_than(as_it_is)]
    for trial in sorted(better, key=lambda trial: float(trial.loss.max())):
        if options.is_over:
            break
        found = search.plan_for(profile, trial.weight)
        if heaviest_of_layer(found, profile).max() <= allowed:
            plan, chosen = (
                _with_expected_figures(found, plain, profile, trial.loss.mean() / as_it_is.loss.mean()),
                trial,
            )
            break
    note = {
        "domains": domains.tolist(),
        "weight": chosen.weight.tolist(),
        "objective": domain_losses(plan=plan, profile=profile, domains=domains).tolist(),
        "plain_objective": domain_losses(plan=plain, profile=profile, domains=domains).tolist(),
        "held_out_objective": chosen.loss.tolist(),
        "plain_held_out_objective": as_it_is.loss.tolist(),
        "is_plain": chosen is as_it_is,
    }
    return replace(plan, predicted={**plan.predicted, "robust": note})


def _with_expected_figures(
    plan: PlacementPlan, plain: PlacementPlan, profile: RoutingProfile, ratio: float
) -> PlacementPlan:
    """The plan with what to expect of it on other requests: copies in `ratio` to those of the plain plan."""
    expected = {"held_out_load_imbalance": expected_imbalance(plan, profile.require_sample("measuring a plan"))}
    if "held_out_objective" in plain.predicted:
        expected["held_out_objective"] = plain.predicted["held_out_objective"] * ratio
        expected["held_out_spread"] = plain.predicted["held_out_spread"]
    return replace(plan, predicted={**plan.predicted, **expected})
