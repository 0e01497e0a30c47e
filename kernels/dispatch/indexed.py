"""Dispatch on the CPU: each place looks up the row that goes there."""

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.compiled import compiled


def dispatch_indexed(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    """As `dispatch`, for checked arguments."""
    if rows.shape[0] == 0:
        return rows.new_empty((num_rows, rows.shape[1]))
    # A place that nothing names holds the first row.
    source_of_place = torch.zeros(num_rows, dtype=torch.int64)
    _look_up(positions.numpy(), source_of_place.numpy())
    return rows.index_select(0, source_of_place)


@compiled
def _look_up(positions: NDArray[np.int32], source_of_place: NDArray[np.int64]) -> None:
    """Write each place's row; positions: [T, C], -1 for none."""
    for row in range(positions.shape[0]):
        for choice in range(positions.shape[1]):
            place = positions[row, choice]
            if place >= 0:
                source_of_place[place] = row
