"""Bound the pairs that one forward pass may send to an expert or a device; off by default, and lossy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from specmoe.errors import UsageError
from specmoe.kernels.capacity.capacity import CapacityLevel, CapacityLimits, Overflow
from specmoe.kernels.capacity.divide import SourceShares, even_limits, quota_limits
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.placement.capacity_quotas import Division, division_of, running_shares
from specmoe.placement.plan import PlacementPlan

Order = Literal["score", "arrival"]
TokenPriority = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CapacityPolicy:
    """A capacity for each forward pass, enforced on the rank where tokens start, before anything is sent.

    factor: the capacity over the mean load, `factor * T * K * s / P` pairs for an expert with s of the P slots (one of
    E without replicas), or at level "device", for a device with s of them (Capacity-Aware Inference, arXiv 2503.05066).
    Every rank enforces its own part.
    overflow: "drop" the pairs beyond it, or "reroute" them to experts of the token's own rank that have room. Weights
    are not renormalised; a token whose pairs are all dropped keeps its residual and shared expert. order: who is kept,
    the highest router "score" or the first to "arrive". priority: a function of the token ids (int64 [B, S]) whose
    result (floating [B, S]) comes before the order: higher is kept first. at_decode: bound the steps of one new token
    per request too. division: each source rank's part; "plan": as the plan expects its pairs, so that a rank may send
    more to the experts that its own tokens want, "even": the same for every rank; None: "plan" where the plan has the
    figures. With "plan" a rank takes its own tokens times the number of ranks for all: where tokens are spread
    unevenly, the parts can add up to more (or less) than the bound. `placement/capacity_quotas.py` has the formulas.
    """

    factor: float
    level: CapacityLevel = "expert"
    overflow: Overflow = "drop"
    order: Order = "score"
    priority: TokenPriority | None = None
    at_decode: bool = False
    division: Division | None = None

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise UsageError(f"the capacity factor is {self.factor}, a positive number was expected")
        choices_of = {"level": CapacityLevel, "overflow": Overflow, "order": Order}
        for name, choices in (choices_of if self.division is None else {**choices_of, "division": Division}).items():
            if getattr(self, name) not in get_args(choices):
                expected = " or ".join(repr(choice) for choice in get_args(choices))
                raise UsageError(f"the capacity's {name} is {getattr(self, name)!r}, {expected} was expected")

    @property
    def summary(self) -> str:
        """What must be the same on all processes, in words."""
        first = "by the caller's priority, then " if self.priority else ""
        steps = "also at decode" if self.at_decode else "not at decode"
        parts = self.division or "best"
        return f"{self.factor} per {self.level}, {self.overflow}, {first}by {self.order}, {steps}, {parts} division"

    def source_shares(self, plan: PlacementPlan, row: int, device: torch.device) -> SourceShares | None:
        """The parts of the source ranks in the plan's row `row`, None for even ones; raises `MismatchError` where the
        plan lacks the figures for the division that is asked for."""
        if division_of(plan, self.division) == "even":
            return None
        running = running_shares(plan, row, self.level)
        before, after = (torch.tensor(part, device=device) for part in (running.before, running.after))
        return SourceShares(before=before, after=after)

    def limits(
        self,
        weights: torch.Tensor,
        home_rank: torch.Tensor,
        tables: RoutingTables,
        priority: torch.Tensor | None,
        expert_scores: torch.Tensor | None,
        shares: SourceShares | None = None,
    ) -> CapacityLimits:
        """The limits of one layer's tokens; weights: floating [T, K]; home_rank: int32 [T]; priority: floating [T];
        expert_scores: float32 [T, E], to reroute; shares: the layer's `source_shares`."""
        by_score = self.order == "score"
        bound = home_rank, weights.shape[1], tables, self.factor, self.level
        return CapacityLimits(
            level=self.level,
            overflow=self.overflow,
            limits=even_limits(*bound) if shares is None else quota_limits(*bound, shares),
            scores=weights.float() if by_score else torch.zeros_like(weights, dtype=torch.float32),
            priority=None if priority is None else priority.float(),
            router_scores=expert_scores,
        )
