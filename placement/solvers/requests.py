"""The sample's requests as a `dp` solver sees them: their tokens, and what is known of each when it arrives."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from specmoe.placement.homes import request_starts
from specmoe.profiler.routing_profile import RoutingSample


@dataclass(frozen=True, kw_only=True)
class Requests:
    """request_of_token: int32 [T]; lengths: int64 [Q], in tokens, in trace order; known_tokens: float64 sparse [Q, D],
    how often each of the sample's D distinct token ids occurs in the first half of each request; token_ids: int32 [D].
    Both None where the profile has no token ids.
    """

    request_of_token: NDArray[np.int32]
    lengths: NDArray[np.int64]
    known_tokens: csr_array | None
    token_ids: NDArray[np.int32] | None

    @classmethod
    def of(cls, sample: RoutingSample) -> "Requests":
        """The requests of a sample; every token is one of its own where requests are unknown, as when serving."""
        starts = request_starts(sample.request_ids, sample.num_tokens)
        lengths = np.diff(starts, append=sample.num_tokens)
        request = np.repeat(np.arange(len(starts), dtype=np.int32), lengths)
        if sample.token_ids is None:
            return cls(request_of_token=request, lengths=lengths, known_tokens=None, token_ids=None)
        first_half = np.arange(sample.num_tokens) - starts[request] < (lengths[request] + 1) // 2
        counts = first_half & (sample.token_ids >= 0)
        ids, column = np.unique(sample.token_ids[counts], return_inverse=True)
        entries = (np.ones(len(column)), (request[counts], column))
        known = csr_array(entries, shape=(len(starts), len(ids)))
        return cls(request_of_token=request, lengths=lengths, known_tokens=known, token_ids=ids.astype(np.int32))

    @property
    def num_requests(self) -> int:
        return len(self.lengths)
