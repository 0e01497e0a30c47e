"""Reduce-scatter and all-gather in one all-to-all each: a token's rows go straight between its home and all others.

Shape suffixes: T tokens, n own tokens, W processes, H hidden size.
"""

import torch

from specmoe.runtime.row_exchange import RowExchange
from specmoe.runtime.token_homes import TokenSlices


class FlatShuffle:
    """Both send `(W-1) T` rows over all processes."""

    def __init__(self, rows: RowExchange) -> None:
        self._rows = rows

    def reduce_scatter(self, partial: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """As `Shuffle.reduce_scatter`."""
        own, world_size = len(slices.own), self._rows.workers.world_size
        received = self._rows.all_to_all(partial[slices.order], slices.sizes, [own] * world_size)
        wide = torch.promote_types(partial.dtype, torch.float32)
        return received.view(world_size, own, partial.shape[1]).to(wide).sum(dim=0).to(partial.dtype)

    def all_gather(self, own: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """As `Shuffle.all_gather`."""
        world_size = self._rows.workers.world_size
        received = self._rows.all_to_all(own.repeat(world_size, 1), [len(own)] * world_size, slices.sizes)
        whole = torch.empty_like(received)
        whole[slices.order] = received
        return whole
