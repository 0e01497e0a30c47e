"""Combine on the CPU in one pass: a token's rows are read once and added in float32 without copies in between."""

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.compiled import compiled

# The types of which numba adds up rows: torch's type, and the one as which numpy sees its bits.
BITS = {torch.bfloat16: torch.uint16, torch.float32: torch.float32, torch.float64: torch.float64}


def combine_compiled(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """As `combine`, for checked arguments of a type in `BITS` on the CPU; bit for bit `combine_reference`."""
    out = rows.new_empty((positions.shape[0], rows.shape[1]))
    bits = BITS[rows.dtype]
    # Unweighted terms are as they are: 1 times each of them.
    scales = torch.ones(positions.shape) if weights is None else weights
    add = _add_bfloat16_rows if rows.dtype == torch.bfloat16 else _add_rows
    add(rows.view(bits).numpy(), positions.numpy(), scales.numpy(), out.view(bits).numpy())
    return out


@compiled
def _add_rows(
    rows: NDArray[np.float32], positions: NDArray[np.int32], weights: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    for token in range(positions.shape[0]):
        out[token] = 0
        for choice in range(positions.shape[1]):
            row = positions[token, choice]
            if row >= 0:
                weight = weights[token, choice]
                for column in range(rows.shape[1]):
                    out[token, column] += rows[row, column] * weight


@compiled
def _add_bfloat16_rows(
    rows: NDArray[np.uint16], positions: NDArray[np.int32], weights: NDArray[np.float32], out: NDArray[np.uint16]
) -> None:
    """Rows as the upper halves of float32 numbers; each sum is rounded to the nearest even upper half."""
    width = rows.shape[1]
    sums = np.empty(width, dtype=np.float32)
    bits = sums.view(np.uint32)
    for token in range(positions.shape[0]):
        sums[:] = 0
        for choice in range(positions.shape[1]):
            row = positions[token, choice]
            if row >= 0:
                weight = weights[token, choice]
                for column in range(width):
                    term = np.uint32(rows[row, column] << 16).view(np.float32)
                    sums[column] += term * weight
        for column in range(width):
            number = bits[column]
            to_even = np.uint32(0x7FFF) + ((number >> np.uint32(16)) & np.uint32(1))
            # A NaN stays one, whatever rounding would carry.
            is_nan = sums[column] != sums[column]
            out[token, column] = np.uint16(0x7FC0) if is_nan else np.uint16((number + to_even) >> np.uint32(16))
