"""Name what makes a load cap impossible, before or after a search."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import InfeasibleError
from specmoe.placement.check import relative_load
from specmoe.placement.metrics import traffic_of_layers
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.least_load import least_load
from specmoe.profiler.routing_profile import RoutingProfile

_TOLERANCE = 1e-6


def keep_cap(plan: PlacementPlan, profile: RoutingProfile, options: SolveOptions) -> PlacementPlan:
    """The plan, with its heaviest rank noted; raises `InfeasibleError` where that breaks the cap.

    With `options.best_effort` the plan comes back all the same. A profile without tokens is not judged.
    """
    if profile.sample is None or profile.sample.num_tokens == 0:
        return plan
    heaviest = heaviest_of_layer(plan, profile)
    worst = int(heaviest.argmax())
    above = heaviest[worst] - options.max_imbalance
    if above > _TOLERANCE and not options.best_effort:
        raise InfeasibleError(
            f"layer {plan.layer_ids[worst]}: the best placement found{_circumstances(options)} has "
            f"{heaviest[worst]:.3f} times the mean load on its heaviest rank, {above:.3f} above the cap of "
            f"{options.max_imbalance:g}{_reason(profile, plan, worst, options)}; give --max-imbalance "
            f"{_rounded_up(heaviest[worst]):g}, {'' if options.group_limited else 'or --extra-slots, '}or take it with "
            "--best-effort"
        )
    return replace(plan, predicted={**plan.predicted, "heaviest_rank": float(heaviest[worst])})


def _circumstances(options: SolveOptions) -> str:
    """What may have kept the search from better, beside the cap."""
    groups = " with expert groups kept whole" if options.group_limited else ""
    return groups if options.time_limit is None else f"{groups} within the time limit"


def _rounded_up(imbalance: float) -> float:
    """The next larger number of two decimals."""
    return math.ceil(imbalance * 100) / 100


def heaviest_of_layer(plan: PlacementPlan, profile: RoutingProfile) -> NDArray[np.float64]:
    """float64 [L]: the heaviest rank's load over its speed, relative to the mean, on the profile's sample."""
    sample = profile.require_sample("checking the load cap")
    pairs = [layer.pairs_of_rank for layer in traffic_of_layers(plan, sample)]
    load = relative_load(np.stack(pairs).astype(np.float64), plan.topology.speed_of_rank)
    heaviest: NDArray[np.float64] = load.max(axis=1)
    return heaviest


def _reason(profile: RoutingProfile, plan: PlacementPlan, layer: int, options: SolveOptions) -> str:
    """What no placement can go below, where that is above the cap; loads by the sample, as the plan is judged."""
    sample = profile.require_sample("checking the load cap")
    counts = np.bincount(sample.expert_ids[:, layer].ravel(), minlength=profile.num_logical_experts)
    least = least_load(counts, np.diff(plan.slot_offsets).astype(np.int32), plan.topology.speed_of_rank)
    if least.heaviest <= options.max_imbalance:
        return ""
    return f"; no placement has less than {least.heaviest:.3f}: {least.reason}"
