"""Prove a plan legal and recompute what it costs, without knowing how it was found."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import InfeasibleError, MismatchError
from specmoe.placement.homes import homes_of
from specmoe.placement.legality import (
    dispatch_violations,
    expert_violations,
    group_violations,
    range_violations,
    slot_violations,
    table_violations,
)
from specmoe.placement.metrics import LayerTraffic, PlacementMetrics, layer_traffic, mean_metrics
from specmoe.placement.objective import objective_of
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.same_model import refuse_other_model
from specmoe.profiler.routing_profile import RoutingProfile

TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A rule that a plan breaks: the rule's name and what is wrong."""

    rule: str
    message: str


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a check found; the figures are None where nothing could be measured.

    objective: as in `placement/objective.py`, the mean over layers on the profile's sample. metrics: the means over
    layers. load_of_rank: float64 [L, R], each rank's load over its speed, relative to the mean (1 is even); from the
    counts alone, every rank taken to use an expert equally often, where the profile has no sample.
    """

    violations: tuple[Violation, ...]
    objective: float | None
    metrics: PlacementMetrics | None
    load_of_rank: NDArray[np.float64] | None

    @property
    def is_legal(self) -> bool:
        return not self.violations

    def require_legal(self) -> None:
        """Raise `InfeasibleError` with the first violation, and how many there are."""
        if self.violations:
            first, more = self.violations[0], len(self.violations) - 1
            others = f" (and {more} more)" if more else ""
            raise InfeasibleError(f"the plan is not legal, rule {first.rule!r}: {first.message}{others}")


def check_plan(
    plan: PlacementPlan,
    profile: RoutingProfile | None = None,
    *,
    max_imbalance: float | None = None,
    extra_slots: int | None = None,
    expert_groups: int | None = None,
) -> CheckReport:
    """Check `plan` against every rule that the arguments allow, and measure it on `profile` where one is given.

    max_imbalance caps each rank's load over its speed, relative to the mean, in every layer, on the profile.
    extra_slots: how many slots a rank must have beyond the experts' own; expert_groups: the router's groups that the
    plan must keep. A profile that the plan says it was solved from must give the objective that the plan records.
    """
    broken = [Violation(rule="range", message=message) for message in range_violations(plan)]
    if broken:  # the other rules index with these values
        return CheckReport(violations=tuple(broken), objective=None, metrics=None, load_of_rank=None)
    vocab_size = profile.vocab_size if profile is not None else None
    broken += [Violation(rule="slots", message=message) for message in slot_violations(plan, extra_slots)]
    broken += [Violation(rule="experts", message=message) for message in expert_violations(plan)]
    broken += [Violation(rule="dispatch", message=message) for message in dispatch_violations(plan)]
    broken += [Violation(rule="tables", message=message) for message in table_violations(plan, vocab_size)]
    if expert_groups is not None:
        broken += [Violation(rule="groups", message=message) for message in group_violations(plan, expert_groups)]
    broken += _bound_violations(plan)
    if broken or profile is None:
        return CheckReport(violations=tuple(broken), objective=None, metrics=None, load_of_rank=None)
    return _check_on_profile(plan, profile, max_imbalance)


def relative_load(pairs_of_rank: NDArray[np.float64], speed_of_rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [..., R]: load over speed, relative to what it would be if all ranks finished together."""
    mean = pairs_of_rank.sum(axis=-1, keepdims=True) / speed_of_rank.sum()
    load = np.ones(pairs_of_rank.shape, dtype=np.float64)
    np.divide(pairs_of_rank / speed_of_rank, mean, out=load, where=mean > 0)
    return load


def load_from_counts(plan: PlacementPlan, profile: RoutingProfile) -> NDArray[np.float64]:
    """float64 [L, R]: `relative_load` when each of the R home ranks has 1/R of every expert's tokens."""
    pairs = np.zeros((plan.num_layers, plan.ep_size), dtype=np.float64)
    for layer, counts in enumerate(profile.expert_counts):
        shares = np.broadcast_to(counts / plan.ep_size, plan.dispatch_rank[layer].shape)
        np.add.at(pairs[layer], plan.dispatch_rank[layer], shares)
    return relative_load(pairs, plan.topology.speed_of_rank)


def _check_on_profile(plan: PlacementPlan, profile: RoutingProfile, max_imbalance: float | None) -> CheckReport:
    try:
        refuse_other_model("given", plan, profile)
    except MismatchError as error:
        violation = Violation(rule="model", message=str(error))
        return CheckReport(violations=(violation,), objective=None, metrics=None, load_of_rank=None)
    objective, metrics = None, None
    if profile.sample is None or profile.sample.num_tokens == 0:
        load = load_from_counts(plan, profile)
    else:
        traffic = _traffic(plan, profile)
        pairs = np.stack([layer.pairs_of_rank for layer in traffic]).astype(np.float64)
        load = relative_load(pairs, plan.topology.speed_of_rank)
        metrics = mean_metrics([layer.metrics() for layer in traffic])
        objective = objective_of(metrics, plan.topology)
    broken = list(_load_violations(plan, load, max_imbalance)) if max_imbalance is not None else []
    if objective is not None and plan.profile_fingerprint == profile.fingerprint:
        broken += _objective_violations(plan, objective)
    return CheckReport(violations=tuple(broken), objective=objective, metrics=metrics, load_of_rank=load)


def _traffic(plan: PlacementPlan, profile: RoutingProfile) -> list[LayerTraffic]:
    sample = profile.require_sample("measuring a plan")
    homes = homes_of(plan, sample)
    return [layer_traffic(plan, sample, layer, homes[layer]) for layer in range(plan.num_layers)]


def _load_violations(plan: PlacementPlan, load: NDArray[np.float64], max_imbalance: float) -> Iterator[Violation]:
    for layer_id, ranks in zip(plan.layer_ids.tolist(), load, strict=True):
        heaviest = int(ranks.argmax())
        if ranks[heaviest] > max_imbalance * (1 + TOLERANCE):
            message = f"layer {layer_id}: rank {heaviest} has {ranks[heaviest]:.4f} of the mean load"
            yield Violation(rule="load", message=f"{message}, at most {max_imbalance:g} was allowed")


def _objective_violations(plan: PlacementPlan, objective: float) -> list[Violation]:
    recorded = plan.objective
    if recorded is None or abs(recorded - objective) <= TOLERANCE * max(1.0, objective):
        return []
    return [Violation(rule="objective", message=f"the plan records {recorded:.6f}, its profile gives {objective:.6f}")]


def _bound_violations(plan: PlacementPlan) -> list[Violation]:
    if plan.bound is None or plan.objective is None or plan.bound <= plan.objective * (1 + TOLERANCE) + TOLERANCE:
        return []
    return [
        Violation(rule="bound", message=f"the bound {plan.bound:.6f} lies above the objective {plan.objective:.6f}")
    ]
