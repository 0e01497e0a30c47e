"""Exact pair counts over tokens: experts used together in a layer, and experts used in one layer and the next.

coactivation[l, i, j] = tokens that use both i and j in row l; transition[l, i, j] = tokens that use i in row l and j in
row l + 1. Time grows with T * L * K * K and memory with L * E * E, whatever the number of tokens.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.compiled import compiled
from specmoe.errors import ArtifactError


class PairCounts:
    """Counts that grow with every `add`; int64, so they do not overflow."""

    def __init__(self, num_layers: int, num_logical_experts: int) -> None:
        L, E = num_layers, num_logical_experts
        self.num_tokens = 0
        self._one_sided = np.zeros((L, E, E), dtype=np.int64)
        self._transitions = np.zeros((L - 1, E, E), dtype=np.int64)

    def add(self, expert_ids: Array) -> None:
        """Count `expert_ids` uint8 | uint16 [T, L, K]; they must have passed `check_expert_ids`."""
        _add_pairs(expert_ids, self._one_sided, self._transitions)
        self.num_tokens += len(expert_ids)

    def state(self) -> dict[str, Array]:
        """All that `merge` needs to count on from here."""
        return {
            "num_tokens": np.asarray([self.num_tokens], dtype=np.int64),
            "one_sided": self._one_sided,
            "transitions": self._transitions,
        }

    def merge(self, state: Mapping[str, Array]) -> None:
        """Add the counts of another's `state`."""
        self.num_tokens += int(state["num_tokens"][0])
        self._one_sided += state["one_sided"]
        self._transitions += state["transitions"]

    def expert_counts(self) -> NDArray[np.int64]:
        """int64 [L, E]."""
        return np.ascontiguousarray(np.diagonal(self._one_sided, axis1=1, axis2=2))

    def coactivation_counts(self) -> NDArray[np.int64]:
        """int64 [L, E, E], symmetric, its diagonal the expert counts."""
        both_sides = self._one_sided + self._one_sided.transpose(0, 2, 1)
        diagonal = np.arange(both_sides.shape[1])
        both_sides[:, diagonal, diagonal] = self.expert_counts()
        return both_sides

    def transition_counts(self) -> NDArray[np.int64]:
        """int64 [L-1, E, E]."""
        return self._transitions.copy()


def id_dtype(num_logical_experts: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest of the two types that a profile stores expert ids in."""
    return np.uint8 if num_logical_experts <= 256 else np.uint16


def check_expert_ids(expert_ids: Array, num_logical_experts: int, what: str) -> None:
    """Raise `ArtifactError`, naming the first bad token, unless each has K distinct experts below E in every layer."""
    token, row = _first_bad_row(expert_ids, num_logical_experts)
    if token < 0:
        return
    found = expert_ids[token, row].tolist()
    raise ArtifactError(
        f"{what} has experts {found} for token {token} in row {row}; "
        f"distinct ids from 0 to {num_logical_experts - 1} were expected"
    )


@compiled
def _add_pairs(expert_ids: Array, one_sided: Array, transitions: Array) -> None:
    T, L, K = expert_ids.shape
    block = 2048  # the tokens of a block stay in the cache while its layers are counted one by one
    for start in range(0, T, block):
        for row in range(L):
            for token in range(start, min(start + block, T)):
                for a in range(K):
                    first = np.int64(expert_ids[token, row, a])
                    for b in range(a, K):
                        one_sided[row, first, np.int64(expert_ids[token, row, b])] += 1
                    if row + 1 < L:
                        for b in range(K):
                            transitions[row, first, np.int64(expert_ids[token, row + 1, b])] += 1


@compiled
def _first_bad_row(expert_ids: Array, num_logical_experts: int) -> tuple[int, int]:
    T, L, K = expert_ids.shape
    for token in range(T):
        for row in range(L):
            for a in range(K):
                expert = np.int64(expert_ids[token, row, a])
                if expert < 0 or expert >= num_logical_experts:
                    return token, row
                for b in range(a):
                    if expert_ids[token, row, b] == expert_ids[token, row, a]:
                        return token, row
    return -1, -1
