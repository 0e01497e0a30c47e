"""Dispatch in plain PyTorch."""

import torch


def dispatch_reference(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    """As `dispatch`, for checked arguments."""
    source, choice = torch.nonzero(positions >= 0, as_tuple=True)
    out = rows.new_empty((num_rows, rows.shape[1]))
    out[positions[source, choice].long()] = rows[source]
    return out
