"""Dispatch in Triton: a row's block is read once and written to each of its places, 16 bytes at a time."""

import torch

from specmoe.kernels.launch.compiler import ceil_div, kernel, power_of_two, tl
from specmoe.kernels.launch.device import device_of

# Words of 4 bytes per program; with 4 warps each thread moves two vectors of 16 bytes.
BLOCK_WORDS = 1024
NUM_WARPS = 4


@torch.library.custom_op("specmoe::dispatch", mutates_args=())
def dispatch_fused(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    """As `dispatch`, for checked arguments."""
    out = rows.new_empty((num_rows, rows.shape[1]))
    _launch(positions, rows, out, None, None)
    return out


@dispatch_fused.register_fake
def _(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    return rows.new_empty((num_rows, rows.shape[1]))


@torch.library.custom_op("specmoe::dispatch_scaled", mutates_args=())
def dispatch_scaled_fused(
    rows: torch.Tensor, scales: torch.Tensor, positions: torch.Tensor, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `dispatch_scaled`, for checked arguments, in one launch."""
    out = rows.new_empty((num_rows, rows.shape[1]))
    out_scales = scales.new_empty((num_rows, scales.shape[1]))
    _launch(positions, rows, out, scales, out_scales)
    return out, out_scales


@dispatch_scaled_fused.register_fake
def _(
    rows: torch.Tensor, scales: torch.Tensor, positions: torch.Tensor, num_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.new_empty((num_rows, rows.shape[1])), scales.new_empty((num_rows, scales.shape[1]))


def _launch(
    positions: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    scales: torch.Tensor | None,
    out_scales: torch.Tensor | None,
) -> None:
    num_tokens, num_choices = positions.shape
    if positions.numel() == 0 or out.shape[0] == 0:
        return
    source, target = _as_words(rows, out)
    words, scale_words = source.shape[1], 0
    source_scales, target_scales = source, target
    if scales is not None and out_scales is not None:
        source_scales, target_scales = _as_words(scales, out_scales)
        scale_words = source_scales.shape[1]
    row_blocks, scale_blocks = ceil_div(words, BLOCK_WORDS), ceil_div(scale_words, BLOCK_WORDS)
    if row_blocks + scale_blocks == 0:
        return
    with device_of(rows):
        _copy_rows[(num_tokens, row_blocks + scale_blocks)](
            source, target, source_scales, target_scales, positions,
            num_choices, out.shape[0], CHOICES=power_of_two(num_choices), WORDS=words, SCALE_WORDS=scale_words,
            ROW_BLOCKS=row_blocks, BLOCK=BLOCK_WORDS, num_warps=NUM_WARPS,
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
    source: tl.tensor,
    target: tl.tensor,
    source_scales: tl.tensor,
    target_scales: tl.tensor,
    positions: tl.tensor,
    num_choices: tl.tensor,
    num_rows: tl.tensor,
    CHOICES: tl.constexpr,
    WORDS: tl.constexpr,
    SCALE_WORDS: tl.constexpr,
    ROW_BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    places = positions + token * num_choices
    choice = tl.arange(0, CHOICES)
    # A row that goes nowhere is not read: received buffers of fixed size are mostly empty.
    if tl.max(tl.load(places + choice, mask=choice < num_choices, other=-1)) >= 0:
        if block < ROW_BLOCKS:
            _copy_block(source, target, places, token, block, num_choices, num_rows, WORDS, BLOCK)
        else:
            _copy_block(
                source_scales,
                target_scales,
                places,
                token,
                block - ROW_BLOCKS,
                num_choices,
                num_rows,
                SCALE_WORDS,
                BLOCK,
            )


@kernel
def _copy_block(
    source: tl.tensor,
    target: tl.tensor,
    places: tl.tensor,
    token: tl.tensor,
    block: tl.tensor,
    num_choices: tl.tensor,
    num_rows: tl.tensor,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < WORDS
    value = tl.load(source + token * WORDS + column, mask=inside)
    for choice in range(num_choices):
        position = tl.load(places + choice).to(tl.int64)
        if (position >= 0) & (position < num_rows):
            tl.store(target + position * WORDS + column, value, mask=inside)
