"""Combine on the CPU for types that compiled code does not know: only rows that are asked for are read, each once."""

import torch


def combine_indexed(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """As `combine`, for checked arguments; bit for bit what `combine_reference` gives."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    is_asked = positions >= 0
    # By token, then choice: the order in which a token's terms are added.
    terms = rows.index_select(0, positions[is_asked].long()).to(wide)
    if weights is not None:
        terms *= weights[is_asked][:, None]
    token = torch.nonzero(is_asked)[:, 0]
    out = torch.zeros((positions.shape[0], rows.shape[1]), dtype=wide, device=rows.device)
    return out.index_add_(0, token, terms).to(rows.dtype)
