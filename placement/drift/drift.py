"""`drift`: how far a new profile is from an old one, what a plan loses on it, and whether to solve anew."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from specmoe.errors import MismatchError, UsageError
from specmoe.placement.drift.distance import distance_by_chance, pair_distance, sample_distance, share_distance
from specmoe.placement.drift.plan_drift import PlanDrift, Verdict, judge_plan, measure_plan_drift
from specmoe.placement.options import SolveProgress
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.same_model import refuse_other_model
from specmoe.profiler.routing_profile import RoutingProfile

# Without a plan to measure: where a twentieth of all pairs has moved to other experts, a plan is likely to lose by it.
_LARGE_DISTANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Drift:
    """distance: mean over layers of the total variation of the experts' shares, 0 to 1, `distance_of_layer` by layer;
    by_chance: what it would be at most, 95 times in 100, were both profiles samples of the same requests, None where
    there are no requests to tell; pair_distance: the same as `distance` for pairs of experts that tokens use together.
    """

    layer_ids: tuple[int, ...]
    distance: float
    distance_of_layer: tuple[float, ...]
    by_chance: float | None
    pair_distance: float | None
    plan: PlanDrift | None
    verdict: Verdict
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def drift(
    old: RoutingProfile | str | PathLike[str],
    new: RoutingProfile | str | PathLike[str],
    plan: PlacementPlan | str | PathLike[str] | None = None,
    *,
    tolerance: float = 0.05,
    solve_anew: bool = True,
    time_limit: float | None = None,
    seed: int = 0,
    on_progress: Callable[[SolveProgress], None] | None = None,
) -> Drift:
    """Compare two profiles of one model and, with `plan`, say what it loses.

    The verdict is `re-solve` where a plan solved from half of the new requests has at least `tolerance` fewer remote
    copies per token on the other half than the plan, as a share of the plan's, or a load imbalance lower by that much;
    without `solve_anew` where the plan costs that much more on the new profile than on the old one or, solved from the
    old one, than its solver expected on other requests of that kind; without a plan where more than a twentieth of all
    pairs moved to other experts, and more than chance would move.
    Raises `MismatchError` where the profiles or the plan are of different models.
    """
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance is {tolerance}, a number between 0 and 1 was expected")
    before, after = _loaded(old), _loaded(new)
    _refuse_other_profile(before, after)
    of_plan = None
    if plan is not None:
        name = plan.method if isinstance(plan, PlacementPlan) else str(plan)
        judged = plan if isinstance(plan, PlacementPlan) else PlacementPlan.load(Path(plan))
        refuse_other_model(name, judged, after)
        of_plan = measure_plan_drift(
            name,
            judged,
            before,
            after,
            solve_anew=solve_anew,
            time_limit=time_limit,
            seed=seed,
            on_progress=on_progress,
        )
    by_layer = share_distance(before.expert_counts, after.expert_counts)
    chance = distance_by_chance(before, after, seed)
    distance = float(by_layer.mean())
    if chance is not None and before.sample is not None and after.sample is not None:
        # Chance is told from the samples, so the distance is, too.
        distance = sample_distance(before.sample, after.sample, before.num_logical_experts)
    pairs = pair_distance(before, after)
    verdict, reason = _judge_distance(distance, chance) if of_plan is None else judge_plan(of_plan, tolerance)
    return Drift(
        layer_ids=tuple(before.layer_ids.tolist()),
        distance=distance,
        distance_of_layer=tuple(by_layer.tolist()),
        by_chance=chance,
        pair_distance=None if pairs is None else float(pairs.mean()),
        plan=of_plan,
        verdict=verdict,
        reason=reason,
    )


def _loaded(source: RoutingProfile | str | PathLike[str]) -> RoutingProfile:
    return source if isinstance(source, RoutingProfile) else RoutingProfile.load(Path(source))


def _refuse_other_profile(old: RoutingProfile, new: RoutingProfile) -> None:
    for what, of_old, of_new in (
        ("experts per layer", old.num_logical_experts, new.num_logical_experts),
        ("experts per token", old.top_k, new.top_k),
        ("layer ids", old.layer_ids.tolist(), new.layer_ids.tolist()),
        ("model fingerprints", old.model_fingerprint, new.model_fingerprint),
    ):
        is_known = of_old is not None and of_new is not None
        if is_known and of_old != of_new:
            raise MismatchError(
                f"the profiles are of different models: their {what} are {of_old} and {of_new}; compare two "
                "profiles of one model"
            )


def _judge_distance(distance: float, chance: float | None) -> tuple[Verdict, str]:
    moved = f"{distance:.1%} of all pairs went to other experts"
    if chance is None:
        return ("re-solve" if distance > _LARGE_DISTANCE else "keep"), f"{moved}; without requests chance is unknown"
    is_real = distance > max(chance, _LARGE_DISTANCE)
    compared = "more than" if distance > chance else "no more than"
    return ("re-solve" if is_real else "keep"), f"{moved}, {compared} the {chance:.1%} that chance explains"
