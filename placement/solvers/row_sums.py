"""Carry values between a layer's distinct expert sets and the rows that tokens are grouped by (requests, token ids)."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled


@compiled
def sum_by_row(
    set_of_token: NDArray[np.int32], row_of_token: NDArray[np.int32], value_of_set: NDArray[np.float64], num_rows: int
) -> NDArray[np.float64]:
    """float64 [num_rows, R]: `value_of_set` [S, R] summed over the tokens of each row."""
    total = np.zeros((num_rows, value_of_set.shape[1]))
    for token in range(len(set_of_token)):
        row, which = row_of_token[token], set_of_token[token]
        for rank in range(total.shape[1]):
            total[row, rank] += value_of_set[which, rank]
    return total


@compiled
def sum_by_set(
    set_of_token: NDArray[np.int32], row_of_token: NDArray[np.int32], share_of_row: NDArray[np.float64], num_sets: int
) -> NDArray[np.float64]:
    """float64 [num_sets, R]: `share_of_row` [N, R] summed over the tokens that use each set."""
    total = np.zeros((num_sets, share_of_row.shape[1]))
    for token in range(len(set_of_token)):
        row, which = row_of_token[token], set_of_token[token]
        for rank in range(total.shape[1]):
            total[which, rank] += share_of_row[row, rank]
    return total
