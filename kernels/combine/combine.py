"""Gather the rows of each token and add them up: a rank's partial sums, or the rows that came back."""

import torch

from specmoe.kernels.checks import FLOATS, check_argument, check_values
from specmoe.kernels.combine.compiled import BITS, combine_compiled
from specmoe.kernels.combine.indexed import combine_indexed


def combine(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """[T, H], of `rows`' dtype: `out[t] = sum over c of weights[t, c] * rows[positions[t, c]]`, in order of c.

    rows: floating [N, H]. positions: int32 [T, C], -1 adds nothing. weights: float32 [T, C], or None for all ones.
    Products and sums are taken in float32 (in float64 for float64 rows) and rounded once. Deterministic. Raises
    `UsageError` for a wrong shape, dtype, device or layout.
    """
    check_argument("rows", rows, FLOATS, (-1, -1), rows.device)
    check_argument("positions", positions, (torch.int32,), (-1, -1), rows.device)
    check_values("positions", positions, 0, rows.shape[0], or_none=True)
    if weights is not None:
        check_argument("weights", weights, (torch.float32,), positions.shape, rows.device)
    if rows.is_cuda:
        from specmoe.kernels.combine.fused import combine_fused

        out: torch.Tensor = combine_fused(rows, positions, weights)
        return out
    if rows.device.type == "cpu" and rows.dtype in BITS:
        return combine_compiled(rows, positions, weights)
    return combine_indexed(rows, positions, weights)
