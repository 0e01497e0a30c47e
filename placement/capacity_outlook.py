"""What capacity bounds of several factors would cost under a plan, for both levels and both overflow rules."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

from specmoe.errors import UsageError
from specmoe.placement.capacity import CapacityLoss, Level, Overflow, capacity_loss, layer_pairs, mean_loss
from specmoe.placement.homes import homes_of
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingSample

LEVELS: tuple[Level, ...] = ("expert", "device")
OVERFLOWS: tuple[Overflow, ...] = ("drop", "reroute")


@dataclass(frozen=True, kw_only=True)
class BoundOutlook:
    """What one bound would cost: the means over layers, and each layer, in the order of the plan's `layer_ids`."""

    factor: float
    level: Level
    overflow: Overflow
    mean: CapacityLoss
    layers: tuple[CapacityLoss, ...]

    def to_json(self, layer_ids: Sequence[int]) -> dict[str, Any]:
        rows = zip(layer_ids, self.layers, strict=True)
        return {
            "factor": self.factor,
            "level": self.level,
            "overflow": self.overflow,
            "mean": self.mean.to_json(),
            "layers": [{"layer_id": layer_id, **layer.to_json()} for layer_id, layer in rows],
        }


def capacity_outlook(plan: PlacementPlan, sample: RoutingSample, factors: Sequence[float]) -> tuple[BoundOutlook, ...]:
    """One outlook per factor, level and overflow rule, in this order; see `placement/capacity.py`.

    Raises `UsageError` for a factor that is not positive, `ArtifactError` for a trace without gate weights.
    """
    for factor in factors:
        if not 0 < factor < float("inf"):
            raise UsageError(f"a capacity factor is {factor}, a positive number was expected")
    bounds = list(product(factors, LEVELS, OVERFLOWS))
    homes = homes_of(plan, sample)

    def losses(layer: int) -> list[CapacityLoss]:
        pairs = layer_pairs(plan, sample, layer, homes[layer])
        return [capacity_loss(plan, layer, pairs, *bound) for bound in bounds]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        by_layer = list(pool.map(losses, range(plan.num_layers)))
    outlooks = []
    for (factor, level, overflow), layers in zip(bounds, zip(*by_layer, strict=True), strict=True):
        mean = mean_loss(list(layers))
        outlooks.append(BoundOutlook(factor=factor, level=level, overflow=overflow, mean=mean, layers=tuple(layers)))
    return tuple(outlooks)
