"""Shuffled reduce-scatter and all-gather: between all tokens on every process and each token on its home process.

Both move unequal slices, so that no row is padded: together they send `2 (W-1) T H` elements over all processes, what
a ring all-reduce of the same [T, H] sends. Shape suffixes: T tokens, n own tokens, W processes, H hidden size.
"""

import torch

from specmoe.runtime.flat_shuffle import FlatShuffle
from specmoe.runtime.node_shuffle import NodeShuffle
from specmoe.runtime.row_exchange import RowExchange
from specmoe.runtime.token_homes import TokenSlices
from specmoe.runtime.workers import Workers

# Bytes of a batch's hidden states from which on it is shuffled by node: measured, fewer take longer in two exchanges.
FEWEST_BYTES = 2**15


class Shuffle:
    """node_of_process: the node of each process where links between nodes are slower, None elsewhere. fewest_bytes
    must be the same on all processes."""

    def __init__(self, workers: Workers, node_of_process: list[int] | None) -> None:
        self._rows = RowExchange(workers)
        self._flat = FlatShuffle(self._rows)
        self._by_node: NodeShuffle | None = None
        # With one process on each node rows cross once as it is.
        if node_of_process is not None and len(set(node_of_process)) < workers.world_size:
            self._by_node = NodeShuffle(self._rows, node_of_process)
        self.fewest_bytes = FEWEST_BYTES

    @property
    def sent_bytes(self) -> int:
        """What this process sent to others since it was made."""
        return self._rows.sent_bytes

    def reduce_scatter(self, partial: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """[n, H]: this process's tokens, summed over the processes in float32, in their order; partial: [T, H]."""
        return self._way(partial, slices).reduce_scatter(partial, slices)

    def all_gather(self, own: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """[T, H]: all processes' tokens in the batch's order; own: [n, H]."""
        return self._way(own, slices).all_gather(own, slices)

    def is_by_node(self, num_bytes: int) -> bool:
        """Whether a batch whose hidden states have so many bytes is shuffled by node."""
        return self._by_node is not None and num_bytes >= self.fewest_bytes

    def _way(self, rows: torch.Tensor, slices: TokenSlices) -> FlatShuffle | NodeShuffle:
        by_node = self._by_node
        num_bytes = len(slices.order) * rows.shape[1] * rows.dtype.itemsize
        return by_node if by_node is not None and self.is_by_node(num_bytes) else self._flat
