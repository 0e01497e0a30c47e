"""Bound the pairs that one forward pass may send to an expert or a device; off by default, and lossy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from specmoe.errors import UsageError
from specmoe.kernels.capacity.capacity import CapacityLevel, CapacityLimits, Overflow, even_limits
from specmoe.kernels.routing_tables import RoutingTables

Order = Literal["score", "arrival"]
TokenPriority = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CapacityPolicy:
    """A capacity for each forward pass, enforced on the rank where tokens start, before anything is sent.

    factor: the capacity over the mean load: `ceil(factor * T * K / E)` pairs for an expert, or at level "device", for a
    device, its share of the slots, with T the tokens at home on the sending rank. overflow: "drop" the pairs beyond
    it, or "reroute" them to experts of the token's own rank that have room. Weights are not renormalised; a token
    whose pairs are all dropped keeps its residual and shared expert. order: who is kept, the highest router "score" or
    the first to "arrive". priority: a function of the token ids (int64 [B, S]) whose result (floating [B, S]) comes
    before the order: higher is kept first. at_decode: bound the steps of one new token per request too.
    """

    factor: float
    level: CapacityLevel = "expert"
    overflow: Overflow = "drop"
    order: Order = "score"
    priority: TokenPriority | None = None
    at_decode: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise UsageError(f"the capacity factor is {self.factor}, a positive number was expected")
        for name, choices in (("level", CapacityLevel), ("overflow", Overflow), ("order", Order)):
            if getattr(self, name) not in get_args(choices):
                expected = " or ".join(repr(choice) for choice in get_args(choices))
                raise UsageError(f"the capacity's {name} is {getattr(self, name)!r}, {expected} was expected")

    @property
    def summary(self) -> str:
        """What must be the same on all processes, in words."""
        first = "by the caller's priority, then " if self.priority else ""
        steps = "also at decode" if self.at_decode else "not at decode"
        return f"{self.factor} per {self.level}, {self.overflow}, {first}by {self.order}, {steps}"

    def limits(
        self,
        weights: torch.Tensor,
        home_rank: torch.Tensor,
        tables: RoutingTables,
        priority: torch.Tensor | None,
        expert_scores: torch.Tensor | None,
    ) -> CapacityLimits:
        """The limits of one layer's tokens; weights: floating [T, K]; home_rank: int32 [T]; priority: floating [T];
        expert_scores: float32 [T, E], to reroute."""
        by_score = self.order == "score"
        return CapacityLimits(
            level=self.level,
            overflow=self.overflow,
            limits=even_limits(home_rank, weights.shape[1], tables, self.factor, self.level),
            scores=weights.float() if by_score else torch.zeros_like(weights, dtype=torch.float32),
            priority=None if priority is None else priority.float(),
            router_scores=expert_scores,
        )
