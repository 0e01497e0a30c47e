"""The steps of limiting that each have a reference and a kernel."""

from dataclasses import dataclass
from typing import Protocol

import torch

from specmoe.kernels.routing_tables import RoutingTables


@dataclass(frozen=True, kw_only=True)
class Selection:
    """kept: bool [T, K], the pairs that were kept; demand: int32 [G], how many of each group there were."""

    kept: torch.Tensor
    demand: torch.Tensor


class Steps(Protocol):
    """T tokens, K pairs each, E logical experts, G groups of pairs, R ranks."""

    def choose_slots(self, expert: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
        """int32 [T, K]: the slot that serves each pair by the plan; expert: integer [T, K], -1 for a dropped pair."""
        ...

    def keep_best(self, group: torch.Tensor, key: torch.Tensor, limits: torch.Tensor) -> Selection:
        """Of each group the `limits[g]` pairs with the highest key, among equals the earliest in [T, K]'s order.

        group: int32 [T, K], -1 for a pair that takes no part; key: int64 [T, K]; limits: int32 [G], at least 0.
        """
        ...

    def nominate(
        self,
        wants: torch.Tensor,
        scores: torch.Tensor,
        taken: torch.Tensor,
        is_open: torch.Tensor,
        home_rank: torch.Tensor,
    ) -> torch.Tensor:
        """int32 [T, K]: the n-th wanting pair of a token gets its n-th best open expert, -1 where there is none left.

        wants: bool [T, K]; scores: float32 [T, E], among equals the lower expert goes first, and experts that score
        minus infinity or NaN are never offered; taken: int32 [T, C], experts that the token does not get (again), -1
        for none; is_open: bool [R, E], by home rank; home_rank: int32 [T].
        """
        ...
