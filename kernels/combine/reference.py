"""Combine in plain PyTorch."""

import torch


def combine_reference(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """As `combine`, for checked arguments."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    out = torch.zeros((positions.shape[0], rows.shape[1]), dtype=wide, device=rows.device)
    if rows.shape[0] == 0:
        return out.to(rows.dtype)
    for choice in range(positions.shape[1]):
        position = positions[:, choice]
        term = rows[position.clamp(min=0).long()].to(wide)
        if weights is not None:
            term = term * weights[:, choice, None]
        # A select, not a product with zero: a row that is not asked for may hold anything, NaN too.
        out += torch.where((position >= 0)[:, None], term, 0)
    return out.to(rows.dtype)
