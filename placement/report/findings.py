"""All that a report shows, measured once: the page and the plots only draw it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import UsageError
from specmoe.placement.baselines.build import even_sizes
from specmoe.placement.capacity import BATCH_TOKENS
from specmoe.placement.capacity_outlook import BoundOutlook, capacity_outlook
from specmoe.placement.drift.drift import Drift, drift
from specmoe.placement.evaluate import Evaluation, PlanResult, evaluate
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.report.detail import PlacementDetail, placement_detail, share_together
from specmoe.placement.report.domains import distances_of_domains, has_domains
from specmoe.placement.report.table_use import TableUse, table_use
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

MAX_PLANS = 8
# A capacity bound acts within batches, so a few of them show its cost; the whole trace would take minutes.
CAPACITY_BATCHES = 8

OnStep = Callable[[str], None]
Part = Callable[[RoutingProfile], RoutingProfile]


def whole(profile: RoutingProfile) -> RoutingProfile:
    """All of it."""
    return profile


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One plan or baseline: `label` is its name as shown, `short` that among the placements of its setting.

    before: the place in the findings of the `linear` baseline with its ranks, nodes, attention and slots.
    together: float64 [L], see `share_together`, None without co-activation counts; table: None where it has none that
    the trace can use; capacity: empty where it was not asked for or the trace has no gate weights.
    """

    label: str
    short: str
    before: int
    result: PlanResult
    detail: PlacementDetail
    together: NDArray[np.float64] | None
    table: TableUse | None
    capacity: tuple[BoundOutlook, ...]

    @property
    def plan(self) -> PlacementPlan:
        return self.result.plan


@dataclass(frozen=True, kw_only=True)
class Findings:
    """`placements` holds the plans, then the baselines. capacity_tokens: how many tokens the capacity bounds saw.

    distances: of each domain from the whole trace, see `distances_of_domains`; none where it has not several.
    drifts: each plan beside an older profile, where one was given: `older_path`, `older_tokens` tokens in its sample.
    """

    profile_path: Path
    profile: RoutingProfile
    evaluation: Evaluation
    placements: tuple[Placement, ...]
    capacity_tokens: int
    distances: tuple[float, ...] = ()
    drifts: tuple[Drift, ...] = ()
    older_path: Path | None = None
    older_tokens: int = 0

    @property
    def plans(self) -> list[Placement]:
        return [placement for placement in self.placements if not placement.result.baseline]

    @property
    def settings(self) -> dict[str, list[Placement]]:
        """The placements that compare with each other, by what they share: ranks, nodes and attention."""
        groups: dict[str, list[Placement]] = {}
        for placement in self.placements:
            groups.setdefault(setting_of(placement.plan), []).append(placement)
        return groups

    def place(self, placement: Placement) -> int:
        """Where `placement` stands in `placements`."""
        return next(place for place, other in enumerate(self.placements) if other is placement)

    def before(self, placement: Placement) -> Placement:
        """The `linear` baseline with the ranks, nodes, attention and slots of `placement`."""
        return self.placements[placement.before]


def with_drift(findings: Findings, older_path: Path, *, part: Part = whole) -> Findings:
    """The findings, and how far their trace and each plan's cost on it have moved since the profile `older_path`."""
    older = part(RoutingProfile.load(older_path))
    sample = older.require_sample("drift")
    drifts = tuple(drift(older, findings.profile, plan.plan, solve_anew=False) for plan in findings.plans)
    return replace(findings, drifts=drifts, older_path=older_path, older_tokens=sample.num_tokens)


def setting_of(plan: PlacementPlan) -> str:
    """The ranks, nodes and attention of a plan in words."""
    per_node = plan.topology.ranks_per_node
    nodes = f" on {len(per_node)} nodes ({' + '.join(map(str, per_node))})" if len(per_node) > 1 else ""
    return f"{plan.ep_size} rank{'' if plan.ep_size == 1 else 's'}{nodes}, attention {plan.attention}"


def gather(
    plans: Sequence[Path],
    profile_path: Path,
    *,
    part: Part = whole,
    capacity: Sequence[float] = (),
    on_step: OnStep | None = None,
) -> Findings:
    """Replay the trace in `profile_path`, or `part` of it, under each plan and the baselines; on_step is called with
    what is at hand.

    Raises what `evaluate` raises, and `UsageError` for the same plan twice or more than MAX_PLANS.
    """
    if len(plans) > MAX_PLANS:
        raise UsageError(f"{len(plans)} plans were given, at most {MAX_PLANS} fit on a page")
    if twice := next((plan for plan in plans if list(plans).count(plan) > 1), None):
        raise UsageError(f"the plan {twice} was given twice; give each once")
    profile = part(RoutingProfile.load(profile_path))
    tell = on_step or (lambda _: None)
    sample = profile.require_sample("a report")
    by_domain = has_domains(sample)
    evaluation = evaluate(list(plans), profile, by_domain=by_domain, on_result=tell)
    names = _labels(plans) + [result.name for result in evaluation.results if result.baseline]
    bounded = _first_batches(sample)
    is_bounded = bool(capacity) and bounded.gate_weights is not None
    shorts = _short_names(names, evaluation)
    placements = []
    for name, short, result in zip(names, shorts, evaluation.results, strict=True):
        tell(name)
        placements.append(
            Placement(
                label=name,
                short=short,
                before=_linear_of(result.plan, evaluation),
                result=result,
                detail=placement_detail(result.plan, sample),
                together=_together(result.plan, profile),
                table=table_use(result.plan, sample, result.mean.remote_copies_per_token),
                capacity=capacity_outlook(result.plan, bounded, capacity) if is_bounded else (),
            )
        )
    return Findings(
        profile_path=profile_path,
        profile=profile,
        evaluation=evaluation,
        placements=tuple(placements),
        capacity_tokens=bounded.num_tokens,
        distances=distances_of_domains(profile) if by_domain else (),
    )


def _labels(plans: Sequence[Path]) -> list[str]:
    """The file's name for each path as given, where no other plan has the same one; otherwise the path."""
    names = [path.name for path in plans]
    return [path.name if names.count(path.name) == 1 else str(path) for path in plans]


def _short_names(names: Sequence[str], evaluation: Evaluation) -> list[str]:
    """A baseline's method where its setting has one such baseline: its full name tells the setting once more."""
    results = evaluation.results
    alike = [(setting_of(result.plan), result.plan.method) if result.baseline else None for result in results]
    return [
        result.plan.method if result.baseline and alike.count(key) == 1 else name
        for name, result, key in zip(names, results, alike, strict=True)
    ]


def _linear_of(plan: PlacementPlan, evaluation: Evaluation) -> int:
    """The place among the results of the `linear` baseline with the plan's ranks, nodes, attention and slots."""
    sizes = even_sizes(plan.num_logical_experts, np.diff(plan.slot_offsets).astype(np.int32))
    for place, result in enumerate(evaluation.results):
        other = result.plan
        is_same = (other.attention, other.topology.ranks_per_node) == (plan.attention, plan.topology.ranks_per_node)
        if result.baseline and other.method == "linear" and is_same and np.diff(other.slot_offsets).tolist() == sizes:
            return place
    raise AssertionError("every plan has a linear baseline")


def _together(plan: PlacementPlan, profile: RoutingProfile) -> NDArray[np.float64] | None:
    counts = profile.coactivation_counts
    return None if counts is None else share_together(plan, counts)


def _first_batches(sample: RoutingSample) -> RoutingSample:
    last = CAPACITY_BATCHES * BATCH_TOKENS
    arrays = {name: array[:last] for name, array in vars(sample).items() if array is not None}
    return replace(sample, **arrays)
