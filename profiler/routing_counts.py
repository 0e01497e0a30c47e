"""Counts over tokens, whole: pairs of experts, and experts by token id."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.profiler.pair_counts import PairCounts
from specmoe.profiler.token_count_builder import TokenCountBuilder
from specmoe.profiler.token_counts import TokenExpertCounts


class RoutingCounts:
    """A `PairCounts` and a `TokenCountBuilder` over the same tokens."""

    def __init__(self, num_layers: int, num_logical_experts: int) -> None:
        self.pairs = PairCounts(num_layers, num_logical_experts)
        self.by_token = TokenCountBuilder(num_layers, num_logical_experts)

    def add(self, expert_ids: Array, token_ids: NDArray[np.int32]) -> None:
        """Count `expert_ids` uint8 | uint16 [T, L, K] of the tokens `token_ids` int32 [T]."""
        self.pairs.add(expert_ids)
        self.by_token.add(expert_ids, token_ids)

    def state(self) -> dict[str, Array]:
        """All that `merge` needs to count on from here."""
        return self.pairs.state() | self.by_token.finish().to_tensors()

    def merge(self, state: Mapping[str, Array]) -> None:
        """Add the counts of another's `state`."""
        self.pairs.merge(state)
        table = TokenExpertCounts.from_tensors(state)
        assert table is not None, "a state has a table of token counts"
        self.by_token.merge(table)
