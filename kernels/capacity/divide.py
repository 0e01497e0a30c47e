"""A capacity bound's part for each source rank, from a factor: equal parts, or parts by the plan's expected traffic.

Nothing waits for the device. `placement/capacity_quotas.py` has the rule and where its formula comes from.
"""

from dataclasses import dataclass

import torch

from specmoe.kernels.capacity.capacity import CapacityLevel
from specmoe.kernels.routing_tables import RoutingTables


@dataclass(frozen=True, kw_only=True)
class SourceShares:
    """What part of a layer's pairs is expected from the home ranks before each one, and with it, as running sums.

    before, after: float64 [R, E], or [R, R] at level "device"; 0 and 1 at a bin's ends, in whatever order of ranks.
    """

    before: torch.Tensor
    after: torch.Tensor


def even_limits(
    home_rank: torch.Tensor, top_k: int, tables: RoutingTables, factor: float, level: CapacityLevel
) -> torch.Tensor:
    """int32 [R, E] or [R, R]: `ceil(factor * T_h * K * S / P)` for an expert, or at level "device" a rank, with S of P
    slots, and T_h the tokens at home on h. home_rank: int32 [T].
    """
    limits = _whole_bound(home_rank, top_k, tables, factor, level)
    return limits.clamp(max=len(home_rank) * top_k).to(torch.int32)


def quota_limits(
    home_rank: torch.Tensor,
    top_k: int,
    tables: RoutingTables,
    factor: float,
    level: CapacityLevel,
    shares: SourceShares,
) -> torch.Tensor:
    """int32 [R, E] or [R, R]: each home rank's part of the bound on `R * T_h` tokens, as the plan expects its traffic.

    Where every rank has equally many tokens, the parts of a bin with S of the P slots add up to
    `ceil(factor * T * K * S / P)`. home_rank: int32 [T].
    """
    whole = _whole_bound(home_rank, top_k, tables, factor * tables.ep_size, level)
    # The same hair for both ends: the steps still add up to the whole.
    limits = torch.floor(whole * shares.after + 1e-9) - torch.floor(whole * shares.before + 1e-9)
    return limits.clamp(max=len(home_rank) * top_k).to(torch.int32)


def _whole_bound(
    home_rank: torch.Tensor, top_k: int, tables: RoutingTables, factor: float, level: CapacityLevel
) -> torch.Tensor:
    """float64 [R, bins], whole numbers: `factor` times the mean of each bin, for the tokens of each home rank."""
    tokens = torch.zeros(tables.ep_size, dtype=torch.int64, device=home_rank.device)
    tokens.scatter_add_(0, home_rank.long(), torch.ones_like(home_rank, dtype=torch.int64))
    slots = (tables.slot_on_rank >= 0).sum(dim=0) if level == "expert" else tables.slot_offsets.diff()
    exact = factor * top_k * tokens.double()[:, None] * slots.double()[None, :] / tables.num_physical_experts
    # What rounding lifts off a whole number by a hair must not count as the next one.
    return torch.ceil(exact - 1e-12 * exact)
