"""What a plan costs on an older and on a newer profile, and whether that asks for a new plan.

A plan flatters itself on the profile that it was solved from, so its cost there is no measure for its cost on new
requests: the solver's own expectation, from requests kept aside while solving, stands in for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from specmoe.placement.drift.halves import split_in_halves
from specmoe.placement.metrics import PlacementMetrics, mean_metrics, measure_plan
from specmoe.placement.options import SolveProgress
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solve import METHODS, solve
from specmoe.profiler.routing_profile import RoutingProfile

Verdict = Literal["keep", "re-solve"]


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the solver expected of a plan on other requests than those that it was solved from; None: not in the plan,
    or in another unit.
    """

    remote_copies_per_token: float | None
    load_imbalance: float | None


@dataclass(frozen=True, kw_only=True)
class PlanDrift:
    """What a plan costs, as means over layers.

    on_old, on_new: the whole samples of the profiles. old_is_fit, new_is_fit: that the plan was solved from that very
    profile. expected: on other requests of the kind of those that it was solved from. kept, solved_anew: on one half of
    the new sample's requests, the plan itself and one solved with the same settings from the other half; both None
    where that was not asked for.
    """

    name: str
    on_old: PlacementMetrics
    on_new: PlacementMetrics
    old_is_fit: bool
    new_is_fit: bool
    expected: Expected
    kept: PlacementMetrics | None
    solved_anew: PlacementMetrics | None


def measure_plan_drift(
    name: str,
    plan: PlacementPlan,
    old: RoutingProfile,
    new: RoutingProfile,
    *,
    solve_anew: bool,
    time_limit: float | None,
    seed: int,
    on_progress: Callable[[SolveProgress], None] | None,
) -> PlanDrift:
    """The drift of `plan` from `old` to `new`; solve_anew: also a plan solved from half of the requests of `new`."""
    kept = solved = None
    if solve_anew:
        fit, judge = split_in_halves(new, seed)
        solved = _measured(_solved_like(plan, fit, time_limit, on_progress), judge)
        kept = _measured(plan, judge)
    return PlanDrift(
        name=name,
        on_old=_measured(plan, old),
        on_new=_measured(plan, new),
        old_is_fit=plan.profile_fingerprint == old.fingerprint,
        new_is_fit=plan.profile_fingerprint == new.fingerprint,
        expected=_expected(plan),
        kept=kept,
        solved_anew=solved,
    )


def judge_plan(drifted: PlanDrift, tolerance: float) -> tuple[Verdict, str]:
    """The verdict of `drift`, and the figures behind it in words."""
    worse = drifted.kept if drifted.kept is not None else drifted.on_new
    against, better = _to_beat(drifted)
    copies = worse.remote_copies_per_token, better.remote_copies_per_token
    loads = worse.load_imbalance, better.load_imbalance
    caution = "; the new profile is the one that it was solved from, which flatters it" if drifted.new_is_fit else ""
    figures = (
        f"the plan has {copies[0]:.3f} remote copies per token at load imbalance {loads[0]:.3f}, "
        f"{against} {copies[1]:.3f} at {loads[1]:.3f}{caution}"
    )
    is_worse = copies[1] < (1.0 - tolerance) * copies[0] or loads[1] + tolerance < loads[0]
    return ("re-solve" if is_worse else "keep"), figures


@dataclass(frozen=True, kw_only=True)
class _Figures:
    remote_copies_per_token: float
    load_imbalance: float


def _to_beat(drifted: PlanDrift) -> tuple[str, PlacementMetrics | _Figures]:
    """What the plan's cost is held against, and that in words."""
    if drifted.solved_anew is not None:
        return "a plan solved from the other half of the new requests has", drifted.solved_anew
    if not drifted.old_is_fit:
        return "on the old profile it has", drifted.on_old
    copies, load = drifted.expected.remote_copies_per_token, drifted.expected.load_imbalance
    if copies is None or load is None:
        return "on the old profile, which it was solved from and which flatters it, it has", drifted.on_old
    return "on other requests of the old kind its solver expected", _Figures(
        remote_copies_per_token=copies, load_imbalance=load
    )


def _solved_like(
    plan: PlacementPlan,
    profile: RoutingProfile,
    time_limit: float | None,
    on_progress: Callable[[SolveProgress], None] | None,
) -> PlacementPlan:
    """A plan of `profile` with the settings of `plan`."""
    asked = plan.predicted.get("asked", {})
    spare = plan.num_physical_experts // plan.ep_size - -(-plan.num_logical_experts // plan.ep_size)
    return solve(
        profile,
        plan.topology,
        attention=plan.attention,
        extra_slots=int(asked.get("extra_slots", spare)),
        max_imbalance=float(asked.get("max_imbalance", 1.05)),
        method=plan.method if plan.method in METHODS else "auto",
        replica_choice=plan.replica_choice,
        time_limit=time_limit,
        seed=plan.seed,
        best_effort=True,
        on_progress=on_progress,
    )


def _expected(plan: PlacementPlan) -> Expected:
    weighted = plan.topology.inter_node_gb_per_s is not None  # by the links' cost: no count of copies
    copies, load = (plan.predicted.get(name) for name in ("held_out_objective", "held_out_load_imbalance"))
    return Expected(
        remote_copies_per_token=float(copies) if isinstance(copies, int | float) and not weighted else None,
        load_imbalance=float(load) if isinstance(load, int | float) else None,
    )


def _measured(plan: PlacementPlan, profile: RoutingProfile) -> PlacementMetrics:
    return mean_metrics(measure_plan(plan, profile.require_sample("measuring what a plan loses")))
