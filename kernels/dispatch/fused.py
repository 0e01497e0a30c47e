"""Dispatch in Triton: a row's block is read once and written to each of its places, 16 bytes at a time."""

import torch

from specmoe.kernels.launch.compiler import ceil_div, kernel, power_of_two, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.launch.operator import operator
from specmoe.kernels.launch.shapes import LaunchShape, MoveCase, launch_shape

# A block's elements are words of 4 bytes where a row is a multiple of them; each thread moves two vectors of 16 bytes.
SHAPE = LaunchShape(block=1024, warps=4)
# Places of a row that are asked for before the first of them is written to.
CHOICES_AT_ONCE = 8


def _new_out(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    return rows.new_empty((num_rows, rows.shape[1]))


@operator("dispatch", _new_out)
def dispatch_fused(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    """As `dispatch`, for checked arguments."""
    out = _new_out(rows, positions, num_rows)
    copy_rows(positions, rows, out, None, None, _shape(rows, positions))
    return out


def _new_scaled_out(
    rows: torch.Tensor, scales: torch.Tensor, positions: torch.Tensor, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.new_empty((num_rows, rows.shape[1])), scales.new_empty((num_rows, scales.shape[1]))


@operator("dispatch_scaled", _new_scaled_out)
def dispatch_scaled_fused(
    rows: torch.Tensor, scales: torch.Tensor, positions: torch.Tensor, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `dispatch_scaled`, for checked arguments, in one launch."""
    out, out_scales = _new_scaled_out(rows, scales, positions, num_rows)
    copy_rows(positions, rows, out, scales, out_scales, _shape(rows, positions))
    return out, out_scales


def _shape(rows: torch.Tensor, positions: torch.Tensor) -> LaunchShape:
    (num_rows, num_choices), row_bytes = positions.shape, rows.shape[1] * rows.element_size()
    case = MoveCase(operation="dispatch", row_bytes=row_bytes, choices=num_choices, rows=num_rows)
    return launch_shape(case, rows.device, SHAPE)


def copy_rows(
    positions: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    scales: torch.Tensor | None,
    out_scales: torch.Tensor | None,
    shape: LaunchShape,
) -> None:
    """Fill `out`, and `out_scales` where there are scales, as `dispatch_scaled`; for checked arguments."""
    num_tokens, num_choices = positions.shape
    if positions.numel() == 0 or out.shape[0] == 0:
        return
    source, target = _as_words(rows, out)
    words, scale_words = source.shape[1], 0
    source_scales, target_scales = source, target
    if scales is not None and out_scales is not None:
        source_scales, target_scales = _as_words(scales, out_scales)
        scale_words = source_scales.shape[1]
    row_blocks, scale_blocks = ceil_div(words, shape.block), ceil_div(scale_words, shape.block)
    if row_blocks + scale_blocks == 0:
        return
    with device_of(rows):
        _copy_rows[(num_tokens, row_blocks + scale_blocks)](
            source, target, source_scales, target_scales, positions, out.shape[0],
            CHOICES=num_choices, C=power_of_two(num_choices), AT_ONCE=min(num_choices, CHOICES_AT_ONCE), WORDS=words,
            SCALE_WORDS=scale_words, ROW_BLOCKS=row_blocks, BLOCK=shape.block, num_warps=shape.warps,
        )  # fmt: skip


def _as_words(rows: torch.Tensor, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as integers of the widest size, up to 4 bytes, that a row's bytes and both addresses are a multiple of."""
    row_bytes = rows.shape[1] * rows.element_size()
    for word in (torch.int32, torch.int16):
        if all(amount % word.itemsize == 0 for amount in (row_bytes, rows.data_ptr(), out.data_ptr())):
            return rows.view(torch.uint8).view(word), out.view(torch.uint8).view(word)
    return rows.view(torch.uint8), out.view(torch.uint8)


@kernel
def _copy_rows(
    source: tl.tensor, target: tl.tensor, source_scales: tl.tensor, target_scales: tl.tensor, positions: tl.tensor,
    num_rows: tl.tensor, CHOICES: tl.constexpr, C: tl.constexpr, AT_ONCE: tl.constexpr, WORDS: tl.constexpr,
    SCALE_WORDS: tl.constexpr, ROW_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    places = positions + row * CHOICES
    choice_C = tl.arange(0, C)
    # A row that goes nowhere is not read: received buffers of fixed size are mostly empty.
    if tl.max(tl.load(places + choice_C, mask=choice_C < CHOICES, other=-1)) >= 0:
        if block < ROW_BLOCKS:
            _copy_block(source, target, places, row, block, num_rows, CHOICES, AT_ONCE, WORDS, BLOCK)
        else:
            block -= ROW_BLOCKS
            _copy_block(
                source_scales, target_scales, places, row, block, num_rows, CHOICES, AT_ONCE, SCALE_WORDS, BLOCK
            )


@kernel
def _copy_block(
    source: tl.tensor, target: tl.tensor, places: tl.tensor, row: tl.tensor, block: tl.tensor, num_rows: tl.tensor,
    CHOICES: tl.constexpr, AT_ONCE: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < WORDS
    value = tl.load(source + row * WORDS + column, mask=inside)
    for first in range(0, CHOICES, AT_ONCE):
        for step in tl.static_range(AT_ONCE):
            choice = first + step
            position = tl.load(places + choice, mask=choice < CHOICES, other=-1).to(tl.int64)
            asked = (position >= 0) & (position < num_rows)
            tl.store(target + position * WORDS + column, value, mask=inside & asked)
