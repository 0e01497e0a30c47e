"""Shuffled reduce-scatter and all-gather: between all tokens on every process and each token on its home process.

Both are all-to-alls of unequal slices, so that no row is padded: together they send `2 (W-1) T H` elements over all
processes, what a ring all-reduce of the same [T, H] sends. Shape suffixes: T tokens, n own tokens, W processes, H.
"""

import torch
import torch.distributed as dist

from specmoe.runtime.errors import others_answer
from specmoe.runtime.token_homes import TokenSlices
from specmoe.runtime.workers import Workers


class Shuffle:
    """`sent_bytes` counts what this process sent to others since it was made."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.sent_bytes = 0

    def reduce_scatter(self, partial: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """[n, H]: this process's tokens, summed over the processes in float32, in their order; partial: [T, H]."""
        own = len(slices.own)
        received = self._all_to_all(partial[slices.order], slices.sizes, [own] * self._workers.world_size)
        wide = torch.promote_types(partial.dtype, torch.float32)
        return received.view(self._workers.world_size, own, partial.shape[1]).to(wide).sum(dim=0).to(partial.dtype)

    def all_gather(self, own: torch.Tensor, slices: TokenSlices) -> torch.Tensor:
        """[T, H]: all processes' tokens in the batch's order; own: [n, H]."""
        world_size = self._workers.world_size
        received = self._all_to_all(own.repeat(world_size, 1), [len(own)] * world_size, slices.sizes)
        whole = torch.empty_like(received)
        whole[slices.order] = received
        return whole

    def _all_to_all(self, sent: torch.Tensor, sent_rows: list[int], received_rows: list[int]) -> torch.Tensor:
        received = sent.new_empty((sum(received_rows), sent.shape[1]))
        # As bytes: backends differ in the dtypes that they know.
        with others_answer(self._workers.process, "the shuffle of tokens"):
            dist.all_to_all_single(received.view(torch.uint8), sent.view(torch.uint8), received_rows, sent_rows)
        to_others = sum(sent_rows) - sent_rows[self._workers.process]
        self.sent_bytes += to_others * sent.shape[1] * sent.dtype.itemsize
        return received
