"""Group requests into padded batches of few shapes: similar lengths together, so that little is padding."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from specmoe.profiler.request_stream import Request

# Requests are sorted by length within a window of this many batches, which bounds what is held in memory.
WINDOW_BATCHES = 32
SHORTEST = 16


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Requests, the row length S that they are padded to on the right, and the ids to run."""

    requests: list[Request]
    padded_length: int

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [B]."""
        return np.array([len(request.token_ids) for request in self.requests], dtype=np.int64)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """bool [B, S]: true at tokens, false at padding."""
        return np.arange(self.padded_length) < self.lengths[:, None]

    @cached_property
    def input_ids(self) -> NDArray[np.int64]:
        """int64 [B, S], zeros as padding."""
        rows = np.zeros(self.mask.shape, dtype=np.int64)
        rows[self.mask] = self.token_ids
        return rows

    @cached_property
    def token_ids(self) -> NDArray[np.int32]:
        """int32 [T]: the tokens of all requests, one after the other, without padding."""
        return np.concatenate([request.token_ids for request in self.requests])


def padded_length(length: int, max_length: int) -> int:
    """`length` rounded up to one of four sizes per power of two, so that a model meets few shapes."""
    step = max(SHORTEST, 1 << max(0, (length - 1).bit_length() - 3))
    return min(-(-length // step) * step, max_length)


def make_batches(requests: Iterable[Request], batch_tokens: int, max_length: int) -> Iterator[Batch]:
    """Batches of at most `batch_tokens` tokens with padding, or of one request where it alone is longer."""
    window: list[Request] = []
    window_tokens = 0
    for request in requests:
        window.append(request)
        window_tokens += len(request.token_ids)
        if window_tokens >= WINDOW_BATCHES * batch_tokens:
            yield from _batches_of(window, batch_tokens, max_length)
            window, window_tokens = [], 0
    yield from _batches_of(window, batch_tokens, max_length)


def _batches_of(window: list[Request], batch_tokens: int, max_length: int) -> Iterator[Batch]:
    # Longest first: a batch that does not fit the device's memory shows at once.
    ordered = sorted(window, key=lambda request: (-len(request.token_ids), request.index))
    start = 0
    while start < len(ordered):
        length = padded_length(len(ordered[start].token_ids), max_length)
        rows = max(1, batch_tokens // length)
        yield Batch(requests=ordered[start : start + rows], padded_length=length)
        start += rows
