"""What bounds a batch's pairs, and what is left of them."""

from dataclasses import dataclass
from typing import Literal

import torch

CapacityLevel = Literal["expert", "device"]
Overflow = Literal["drop", "reroute"]


@dataclass(frozen=True, kw_only=True)
class CapacityLimits:
    """How many pairs the tokens at home on each rank may have served, and which go first. T tokens, K experts each.

    level "expert": limits is int32 [R, E], by home rank and logical expert. level "device": limits is int32 [R, R], by
    home rank and serving rank. Negative limits count as 0. `even_limits` and `quota_limits` make them from a factor.
    scores: float32 [T, K]; the pairs over a limit are those with the lowest scores, among equals those of later tokens,
    then those later in the token. NaN is the lowest score. All equal: first come, first served.
    priority: float32 [T] or None; a token's pairs go before those of every token of lower priority, whatever their
    score.
    overflow "drop": pairs over a limit are not served. "reroute": they are first offered to experts that the token's
    home rank holds itself and that have room; router_scores, float32 [T, E], says how much each token wants each
    expert, and becomes the weight of a pair that is rerouted.
    """

    level: CapacityLevel
    overflow: Overflow
    limits: torch.Tensor
    scores: torch.Tensor
    priority: torch.Tensor | None = None
    router_scores: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LimitedPairs:
    """What `CapacityLimits` lets through of T tokens' K pairs each.

    pair_slot: int32 [T, K], the slot that serves each pair, -1 where it is dropped. weights: float32 [T, K].
    rerouted: bool [T, K], the pairs that another expert serves. demand: int32, of the limits' shape: how many pairs
    asked; where it is over the limit there was an overflow.
    """

    pair_slot: torch.Tensor
    weights: torch.Tensor
    rerouted: torch.Tensor
    demand: torch.Tensor
