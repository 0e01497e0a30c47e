"""Collect the counts of (layer, token id, expert) over a stream of tokens, in bounded memory."""

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.profiler.token_count_table import count_tokens, merge_token_counts
from specmoe.profiler.token_counts import TokenExpertCounts

BLOCK_BYTES = 32 * 2**20


class TokenCountBuilder:
    """Buffers tokens, turns each full buffer into a sorted table, and merges tables of like size, smallest first.

    Memory: the buffer (`block_bytes` of expert ids), and 10 bytes per entry of the tables, up to four times that while
    two of them merge. There are at most min(T * L * K, distinct token ids * L * E) entries, so a corpus that
    goes on and on adds nothing once its vocabulary has been seen.
    """

    def __init__(self, num_layers: int, num_logical_experts: int, *, block_bytes: int = BLOCK_BYTES) -> None:
        self._num_layers = num_layers
        self._num_logical_experts = num_logical_experts
        self._block_bytes = block_bytes
        self._expert_ids: list[Array] = []
        self._token_ids: list[NDArray[np.int32]] = []
        self._buffered_bytes = 0
        self._tables: list[TokenExpertCounts] = []

    def add(self, expert_ids: Array, token_ids: NDArray[np.int32]) -> None:
        """Count `expert_ids` uint8 | uint16 [T, L, K] of the tokens `token_ids` int32 [T]."""
        self._expert_ids.append(expert_ids)
        self._token_ids.append(token_ids)
        self._buffered_bytes += expert_ids.nbytes
        if self._buffered_bytes >= self._block_bytes:
            self._flush()

    def merge(self, table: TokenExpertCounts) -> None:
        """Add the counts of `table`."""
        self._flush()
        self._tables.append(table)
        self._merge_alike()

    def finish(self) -> TokenExpertCounts:
        """The counts of all tokens added."""
        self._flush()
        while len(self._tables) > 1:
            self._merge_last()
        if not self._tables:
            empty = np.zeros((0, self._num_layers, 1), dtype=np.uint8)
            return count_tokens(empty, np.zeros(0, dtype=np.int32), self._num_logical_experts)
        return self._tables[0]

    def _flush(self) -> None:
        if not self._expert_ids:
            return
        expert_ids, token_ids = np.concatenate(self._expert_ids), np.concatenate(self._token_ids)
        self._expert_ids, self._token_ids, self._buffered_bytes = [], [], 0
        self._tables.append(count_tokens(expert_ids, token_ids, self._num_logical_experts))
        self._merge_alike()

    def _merge_alike(self) -> None:
        while len(self._tables) > 1 and len(self._tables[-2].counts) <= 2 * len(self._tables[-1].counts):
            self._merge_last()

    def _merge_last(self) -> None:
        second, first = self._tables.pop(), self._tables.pop()
        self._tables.append(merge_token_counts(first, second))
