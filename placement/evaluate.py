"""Replay a trace under plans, and under what engines do today, and say what each would have cost."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from specmoe.errors import UsageError
from specmoe.placement.baselines.for_plan import baselines_for
from specmoe.placement.capacity_outlook import BoundOutlook, capacity_outlook
from specmoe.placement.domain_metrics import DomainMetrics, domain_rows, measure_domains
from specmoe.placement.homes import request_starts
from specmoe.placement.metrics import PlacementMetrics, mean_metrics, measure_plan
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.same_model import refuse_other_model
from specmoe.placement.step_time import StepModel, StepTime, mean_step_time, step_times
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

PlanSource = PlacementPlan | str | PathLike[str]
OnResult = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TraceSummary:
    """The trace that plans were replayed on: the profile's sample; without token ids a plan's tables say nothing."""

    source: str
    num_tokens: int
    num_requests: int
    num_layers: int
    num_logical_experts: int
    top_k: int
    has_token_ids: bool
    profile_fingerprint: str

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """What the trace costs under one plan: the means over layers, and each layer (its decoder layer in `layer_ids`).

    plan is the plan itself; baseline says that it is one of the placements to compare with, not one of the caller's.
    capacity: what capacity bounds would cost, step_times: each layer's modelled step, domains: the means of each domain
    of the trace, where that was asked for.
    """

    name: str
    plan: PlacementPlan
    baseline: bool
    mean: PlacementMetrics
    layers: tuple[PlacementMetrics, ...]
    capacity: tuple[BoundOutlook, ...] = ()
    step_times: tuple[StepTime, ...] = ()
    domains: tuple[DomainMetrics, ...] = ()

    @property
    def layer_ids(self) -> list[int]:
        ids: list[int] = self.plan.layer_ids.tolist()
        return ids

    @property
    def has_table(self) -> bool:
        """Whether the plan has a token table, which a trace without token ids leaves unread."""
        return self.plan.token_affinity is not None or self.plan.token_to_rank is not None

    def to_json(self) -> dict[str, Any]:
        layers = zip(self.layer_ids, self.layers, strict=True)
        rows = [{"layer_id": layer_id, **layer.to_json()} for layer_id, layer in layers]
        value: dict[str, Any] = {"name": self.name, "mean": self.mean.to_json(), "layers": rows}
        if self.capacity:
            value["capacity"] = [outlook.to_json(self.layer_ids) for outlook in self.capacity]
        if self.domains:
            value["domains"] = [domain.to_json() for domain in self.domains]
        if self.step_times:
            timed = zip(self.layer_ids, self.step_times, strict=True)
            value["modelled_step"] = {
                "mean": mean_step_time(self.step_times).to_json(),
                "layers": [{"layer_id": layer_id, **step.to_json()} for layer_id, step in timed],
            }
        return value


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One result per plan, in the caller's order, then one per baseline."""

    trace: TraceSummary
    results: tuple[PlanResult, ...]

    def result(self, name: str) -> PlanResult:
        """The first result of that name; raises `UsageError` where there is none."""
        for result in self.results:
            if result.name == name:
                return result
        raise UsageError(f"there is no result named {name!r}; there are {[result.name for result in self.results]}")

    def is_in_sample(self, result: PlanResult) -> bool:
        """Whether a plan of the caller's was solved from the very profile that it is judged on."""
        return not result.baseline and result.plan.profile_fingerprint == self.trace.profile_fingerprint

    def to_json(self) -> dict[str, Any]:
        """`{"trace": {…}, "results": [{"name", "mean": {metric: value}, "layers": [{"layer_id", …}, …]}, …]}`.

        Where asked for, a result has also "capacity", `[{"factor", "level", "overflow", "mean": {…}, "layers": […]},
        …]`, "modelled_step", `{"mean": {…}, "layers": […]}`, and "domains", `[{"domain", "num_tokens", "mean"}, …]`.
        """
        return {"trace": self.trace.to_json(), "results": [result.to_json() for result in self.results]}


def evaluate(
    plans: PlanSource | Iterable[PlanSource] | Mapping[str, PlanSource],
    profile: RoutingProfile | str | PathLike[str],
    *,
    capacity: Sequence[float] = (),
    step_model: StepModel | None = None,
    by_domain: bool = False,
    on_result: OnResult | None = None,
) -> Evaluation:
    """Replay the sample of `profile` under each plan, and under `linear`, `round_robin` and `eplb`.

    A plan is a `PlacementPlan` or the path of one. Its name in the result is its key in a mapping, the path as given,
    or the method of a plan without a path. The baselines have the ranks, nodes and attention of the first plan, no
    tables and static choice; plans of another setting add their own, named after it. `eplb` has as many slots as the
    plan and is fitted to the counts of the very trace that it is judged on: its best case. `capacity`: factors of
    capacity bounds whose cost to tell, see `placement/capacity.py`; they need gate weights. `step_model`: what a
    modelled step time builds on, see `placement/step_time.py`; it needs bandwidths in the plans' topology. `by_domain`:
    also tell what each domain of the trace costs, see `placement/domain_metrics.py`. `on_result` is called with each
    name when that result is there.

    Raises `MismatchError` for a plan of another model, `ArtifactError` for a file that is not what it should be or a
    profile without a trace, `UsageError` for no plan at all.
    """
    judged = profile if isinstance(profile, RoutingProfile) else RoutingProfile.load(Path(profile))
    named = _named_plans(plans)
    sample = judged.require_sample("evaluating a plan")
    for name, plan in named:
        refuse_other_model(name, plan, judged)
    candidates = [(name, plan, False) for name, plan in named]
    candidates += [(name, plan, True) for name, plan in baselines_for([plan for _, plan in named], judged)]
    domains = domain_rows(judged) if by_domain else []
    results = []
    for name, plan, baseline in candidates:
        result = _judge(name, plan, sample, baseline=baseline)
        outlook = capacity_outlook(plan, sample, capacity) if capacity else ()
        steps = step_times(plan, sample, step_model) if step_model is not None else ()
        parts = measure_domains(plan, sample, domains) if domains else ()
        results.append(replace(result, capacity=outlook, step_times=tuple(steps), domains=parts))
        if on_result is not None:
            on_result(name)
    return Evaluation(trace=_summary(judged, sample), results=tuple(results))


def _judge(name: str, plan: PlacementPlan, sample: RoutingSample, *, baseline: bool) -> PlanResult:
    layers = measure_plan(plan, sample)
    return PlanResult(name=name, plan=plan, baseline=baseline, mean=mean_metrics(layers), layers=tuple(layers))


def _named_plans(
    plans: PlanSource | Iterable[PlanSource] | Mapping[str, PlanSource],
) -> list[tuple[str, PlacementPlan]]:
    if isinstance(plans, Mapping):
        named = [(str(name), _loaded(source)) for name, source in plans.items()]
    elif isinstance(plans, PlacementPlan | str | PathLike):
        named = [_with_name(plans)]
    else:
        named = [_with_name(source) for source in plans]
    if not named:
        raise UsageError("there is no plan to evaluate; give at least one")
    return named


def _with_name(source: PlanSource) -> tuple[str, PlacementPlan]:
    return (source.method if isinstance(source, PlacementPlan) else str(source)), _loaded(source)


def _loaded(source: PlanSource) -> PlacementPlan:
    if isinstance(source, PlacementPlan):
        return source
    if not isinstance(source, str | PathLike):
        raise UsageError(f"a plan is {source!r}, a PlacementPlan or the path of a plan file was expected")
    return PlacementPlan.load(Path(source))


def _summary(profile: RoutingProfile, sample: RoutingSample) -> TraceSummary:
    return TraceSummary(
        source=profile.source,
        num_tokens=sample.num_tokens,
        num_requests=len(request_starts(sample.request_ids, sample.num_tokens)),
        num_layers=profile.num_layers,
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        has_token_ids=sample.token_ids is not None,
        profile_fingerprint=profile.fingerprint,
    )
