"""Carry values along tokens: from expert sets to the rows that tokens are grouped by (requests, token ids), or back."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled


@compiled
def sum_over_tokens(
    source_of_token: NDArray[np.int32],
    target_of_token: NDArray[np.int32],
    value_of_source: NDArray[np.floating],
    num_targets: int,
) -> NDArray[np.float64]:
    """float64 [num_targets, R]: `value_of_source` [N, R] summed over the tokens of each target."""
    total = np.zeros((num_targets, value_of_source.shape[1]))
    for token in range(len(source_of_token)):
        source, target = source_of_token[token], target_of_token[token]
        for rank in range(total.shape[1]):
            total[target, rank] += value_of_source[source, rank]
    return total
