"""Write each row to every place that it goes to: to the ranks of a token, or to the slots of a received row."""

import torch

from specmoe.kernels.checks import check_argument, check_values
from specmoe.kernels.dispatch.indexed import dispatch_indexed
from specmoe.kernels.dispatch.reference import dispatch_reference


def dispatch(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    """[num_rows, H], of `rows`' dtype: `out[positions[t, c]] = rows[t]` wherever `positions[t, c] >= 0`.

    rows: any dtype [T, H]. positions: int32 [T, C], each place named at most once, -1 for none. Places that nothing
    names hold unspecified values. Raises `UsageError` for a wrong shape, dtype, device or layout.
    """
    check_argument("rows", rows, (rows.dtype,), (-1, -1), rows.device)
    check_argument("positions", positions, (torch.int32,), (rows.shape[0], -1), rows.device)
    check_values("positions", positions, 0, num_rows, or_none=True)
    if rows.is_cuda:
        from specmoe.kernels.dispatch.fused import dispatch_fused

        out: torch.Tensor = dispatch_fused(rows, positions, num_rows)
        return out
    return _on_other_devices(rows, positions, num_rows)


def dispatch_scaled(
    rows: torch.Tensor, scales: torch.Tensor, positions: torch.Tensor, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dispatch` of quantized rows together with their scales: `[num_rows, H]` and `[num_rows, S]`, in one launch.

    rows: any dtype [T, H], such as float8_e4m3fn. scales: any dtype [T, S], a row's scales (one per block of columns).
    """
    check_argument("scales", scales, (scales.dtype,), (rows.shape[0], -1), rows.device)
    check_argument("rows", rows, (rows.dtype,), (-1, -1), rows.device)
    check_argument("positions", positions, (torch.int32,), (rows.shape[0], -1), rows.device)
    check_values("positions", positions, 0, num_rows, or_none=True)
    if rows.is_cuda:
        from specmoe.kernels.dispatch.fused import dispatch_scaled_fused

        out, out_scales = dispatch_scaled_fused(rows, scales, positions, num_rows)
        return out, out_scales
    return _on_other_devices(rows, positions, num_rows), _on_other_devices(scales, positions, num_rows)


def _on_other_devices(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    on_device = dispatch_indexed if rows.device.type == "cpu" else dispatch_reference
    return on_device(rows, positions, num_rows)
