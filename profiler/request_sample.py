"""Draw whole requests uniformly up to a budget of tokens.

Every request has a pseudo-random priority from (seed, its index). The sample is the longest run of requests in order
of priority that fits the budget: which request comes in depends on nothing but its index, so batches, processes and
the order of arrival do not change it. A request longer than the whole budget is left out.
"""

import heapq
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Payload = TypeVar("Payload")

_STEP = np.uint64(0x9E3779B97F4A7C15)


def priorities(indices: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """uint64: SplitMix64's output function (Steele, Lea and Flood 2014) on a counter made of seed and index."""
    state = (indices.astype(np.uint64) + np.uint64(1)) * _STEP
    state ^= _mix(np.asarray([seed % 2**64], dtype=np.uint64) + _STEP)
    return _mix(state)


def choose_requests(lengths: NDArray[np.int64], budget_tokens: int, seed: int) -> NDArray[np.int64]:
    """The indices, increasing, of the requests drawn from `lengths` int64 [number of requests]."""
    candidates = np.flatnonzero(lengths <= budget_tokens)
    in_order = candidates[np.argsort(priorities(candidates, seed), kind="stable")]
    fitting = np.cumsum(lengths[in_order]) <= budget_tokens
    return np.sort(in_order[fitting])


class RequestReservoir(Generic[Payload]):
    """`choose_requests` over a stream: holds the payloads of at most `budget_tokens` tokens."""

    def __init__(self, budget_tokens: int, seed: int) -> None:
        self._budget_tokens = budget_tokens
        self._seed = seed
        self._threshold = 2**64
        self._num_tokens = 0
        self._heap: list[tuple[int, int, int]] = []
        self._payloads: dict[int, Payload] = {}

    def wants(self, index: int, length: int) -> bool:
        """Whether request `index` of `length` tokens can still come into the sample."""
        return length <= self._budget_tokens and self._priority(index) < self._threshold

    def add(self, index: int, length: int, payload: Payload) -> None:
        """Take request `index` in where it is wanted, and let go of those that no longer fit."""
        if not self.wants(index, length):
            return
        heapq.heappush(self._heap, (-self._priority(index), -index, length))
        self._payloads[index] = payload
        self._num_tokens += length
        while self._num_tokens > self._budget_tokens:
            self._threshold = self._drop_last()

    @property
    def threshold(self) -> int:
        """Requests of this priority or above are out; 2^64 while all that fit the budget are in."""
        return self._threshold

    def lower_threshold(self, threshold: int) -> None:
        """Let go of what another reservoir of the same budget and seed, over other requests, has found to be out."""
        self._threshold = min(self._threshold, threshold)
        while self._heap and -self._heap[0][0] >= self._threshold:
            self._drop_last()

    def finish(self) -> dict[int, Payload]:
        """The payloads by request index, increasing."""
        return {index: self._payloads[index] for index in sorted(self._payloads)}

    def _drop_last(self) -> int:
        """Drop the request of the highest priority number, and return that."""
        negative_priority, negative_index, released = heapq.heappop(self._heap)
        self._num_tokens -= released
        del self._payloads[-negative_index]
        return -negative_priority

    def _priority(self, index: int) -> int:
        return int(priorities(np.asarray([index], dtype=np.int64), self._seed)[0])


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
