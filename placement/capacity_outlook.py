"""What capacity bounds of several factors would cost under a plan, for both levels and both overflow rules."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

from specmoe.errors import UsageError
from specmoe.placement.capacity import CapacityLoss, Overflow, capacity_loss, layer_pairs, mean_loss
from specmoe.placement.capacity_quotas import Division, Level, division_of
from specmoe.placement.homes import homes_of
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingSample

LEVELS: tuple[Level, ...] = ("expert", "device")
OVERFLOWS: tuple[Overflow, ...] = ("drop", "reroute")


@dataclass(frozen=True, kw_only=True)
class BoundOutlook:
    """What one bound would cost: the means over layers, and each layer, in the order of the plan's `layer_ids`.

    division: how the bound is divided among the source ranks.
    """

    factor: float
    level: Level
    overflow: Overflow
    division: Division
    mean: CapacityLoss
    layers: tuple[CapacityLoss, ...]

    def to_json(self, layer_ids: Sequence[int]) -> dict[str, Any]:
        rows = zip(layer_ids, self.layers, strict=True)
        return {
            "factor": self.factor,
            "level": self.level,
            "overflow": self.overflow,
            "division": self.division,
            "mean": self.mean.to_json(),
            "layers": [{"layer_id": layer_id, **layer.to_json()} for layer_id, layer in rows],
        }


def capacity_outlook(
    plan: PlacementPlan, sample: RoutingSample, factors: Sequence[float], division: Division | None = None
) -> tuple[BoundOutlook, ...]:
    """One outlook per factor, level and overflow rule, in this order; see `placement/capacity.py`.

    division: None for "plan" where the plan has the figures for it, else "even". Raises `UsageError` for a factor that
    is not positive, `ArtifactError` for a trace without gate weights, `MismatchError` for a plan without figures.
    """
    divided = division_of(plan, division)
    for factor in factors:
        if not 0 < factor < float("inf"):
            raise UsageError(f"a capacity factor is {factor}, a positive number was expected")
    bounds = list(product(factors, LEVELS, OVERFLOWS))
    homes = homes_of(plan, sample)

    def losses(layer: int) -> list[CapacityLoss]:
        pairs = layer_pairs(plan, sample, layer, homes[layer])
        return [capacity_loss(plan, layer, pairs, *bound, divided) for bound in bounds]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        by_layer = list(pool.map(losses, range(plan.num_layers)))
    outlooks = []
    for (factor, level, overflow), layers in zip(bounds, zip(*by_layer, strict=True), strict=True):
        mean = mean_loss(list(layers))
        bound = {"factor": factor, "level": level, "overflow": overflow, "division": divided}
        outlooks.append(BoundOutlook(**bound, mean=mean, layers=tuple(layers)))  # type: ignore[arg-type]
    return tuple(outlooks)
