"""Combine in Triton: a token's rows are gathered, weighted and added in float32, and written once."""

import torch

from specmoe.kernels.launch.compiler import ceil_div, kernel, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.launch.operator import operator
from specmoe.kernels.launch.shapes import LaunchShape, MoveCase, launch_shape

SHAPE = LaunchShape(block=1024, warps=4)
# Rows of a token whose loads are in flight together.
CHOICES_AT_ONCE = 8


def _new_out(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return rows.new_empty((positions.shape[0], rows.shape[1]))


@operator("combine", _new_out)
def combine_fused(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """As `combine`, for checked arguments; the same bits as the reference."""
    out = _new_out(rows, positions, weights)
    (num_tokens, num_choices), row_bytes = positions.shape, rows.shape[1] * rows.element_size()
    case = MoveCase(operation="combine", row_bytes=row_bytes, choices=num_choices, rows=num_tokens)
    add_rows(rows, positions, weights, out, launch_shape(case, rows.device, SHAPE))
    return out


def add_rows(
    rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None, out: torch.Tensor, shape: LaunchShape
) -> None:
    """Fill `out` as `combine`, for checked arguments."""
    (num_tokens, num_choices), width = positions.shape, rows.shape[1]
    if out.numel() == 0:
        return
    with device_of(rows):
        # Without fusion into multiply-adds, which would round once where the reference rounds twice.
        _combine_rows[(num_tokens, ceil_div(width, shape.block))](
            rows, positions, positions if weights is None else weights, out, rows.shape[0],
            WEIGHTED=weights is not None, CHOICES=num_choices, AT_ONCE=min(CHOICES_AT_ONCE, max(num_choices, 1)),
            WIDTH=width, WIDE=tl.float64 if rows.dtype == torch.float64 else tl.float32, BLOCK=shape.block,
            num_warps=shape.warps, enable_fp_fusion=False,
        )  # fmt: skip


@kernel
def _combine_rows(
    rows: tl.tensor,
    positions: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    WEIGHTED: tl.constexpr,
    CHOICES: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros([BLOCK], dtype=WIDE)
    for first in range(0, CHOICES, AT_ONCE):
        for step in tl.static_range(AT_ONCE):
            choice = first + step
            pair = token * CHOICES + choice
            position = tl.load(positions + pair, mask=choice < CHOICES, other=-1).to(tl.int64)
            asked = (position >= 0) & (position < num_rows)
            term = tl.load(rows + position * WIDTH + column, mask=inside & asked, other=0.0).to(WIDE)
            if WEIGHTED:
                term *= tl.load(weights + pair, mask=asked, other=0.0)
            total += term
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=inside)
