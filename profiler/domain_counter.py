"""Count each domain's use of experts over a stream of tokens."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.compiled import compiled
from specmoe.profiler.domain_counts import DomainCounts


class DomainCounter:
    """Memory: 8 * L * E bytes per domain."""

    def __init__(self, names: Sequence[str], num_layers: int, num_logical_experts: int) -> None:
        self._names = tuple(names)
        self._num_tokens = np.zeros(len(names), dtype=np.int64)
        self._expert_counts = np.zeros((len(names), num_layers, num_logical_experts), dtype=np.int64)

    def add(self, expert_ids: Array, domain_ids: NDArray[np.int64]) -> None:
        """Count `expert_ids` uint8 | uint16 [T, L, K] of tokens in the domains `domain_ids` [T]."""
        self._num_tokens += np.bincount(domain_ids, minlength=len(self._names))
        _add_by_domain(expert_ids, domain_ids, self._expert_counts)

    def state(self) -> dict[str, Array]:
        """All that `merge` needs to count on from here."""
        return {"num_tokens": self._num_tokens, "expert_counts": self._expert_counts}

    def merge(self, state: Mapping[str, Array]) -> None:
        """Add the counts of another's `state`."""
        self._num_tokens += state["num_tokens"]
        self._expert_counts += state["expert_counts"]

    def finish(self) -> DomainCounts:
        """The counts of all tokens added."""
        return DomainCounts(names=self._names, num_tokens=self._num_tokens, expert_counts=self._expert_counts)


@compiled
def _add_by_domain(expert_ids: Array, domain_ids: Array, expert_counts: Array) -> None:
    T, L, K = expert_ids.shape
    for token in range(T):
        for row in range(L):
            for k in range(K):
                expert_counts[domain_ids[token], row, np.int64(expert_ids[token, row, k])] += 1
