"""How often each token id used each expert, in a sparse form: one row per (layer, token id) in CSR layout."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.fields import check_range, check_tensor

PREFIX = "token_counts."


@dataclass(frozen=True, kw_only=True)
class TokenExpertCounts:
    """Counts of (layer, token id, expert), only where positive.

    token_ids: int32 [N], the distinct ids, increasing. row_offsets: int64 [L * N + 1]; row `layer * N + n` holds
    `expert_ids[row_offsets[row] : row_offsets[row + 1]]` (uint16, increasing) and the same range of `counts` (int64).
    """

    token_ids: NDArray[np.int32]
    row_offsets: NDArray[np.int64]
    expert_ids: NDArray[np.uint16]
    counts: NDArray[np.int64]

    def check(self, num_layers: int, num_logical_experts: int) -> None:
        """Raise `ArtifactError` unless the four arrays fit each other and the model's sizes."""
        N, nnz = len(self.token_ids), len(self.expert_ids)
        check_tensor(PREFIX + "token_ids", self.token_ids, (np.int32,), (N,))
        check_tensor(PREFIX + "row_offsets", self.row_offsets, (np.int64,), (num_layers * N + 1,))
        check_tensor(PREFIX + "expert_ids", self.expert_ids, (np.uint16,), (nnz,))
        check_tensor(PREFIX + "counts", self.counts, (np.int64,), (nnz,))
        check_range(PREFIX + "expert_ids", self.expert_ids, 0, num_logical_experts)
        check_range(PREFIX + "counts", self.counts, 1, np.inf)
        if np.any(np.diff(self.token_ids) <= 0):
            raise ArtifactError(f"tensor {PREFIX}token_ids must increase")
        steps = np.diff(self.row_offsets)
        if self.row_offsets[0] != 0 or self.row_offsets[-1] != nnz or np.any(steps < 0):
            raise ArtifactError(f"tensor {PREFIX}row_offsets must rise from 0 to {nnz}")

    def to_tensors(self) -> dict[str, Array]:
        return {PREFIX + name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> "TokenExpertCounts | None":
        """The counts among a profile's tensors, None where there are none."""
        missing = [name for name in _NAMES if PREFIX + name not in tensors]
        if len(missing) == len(_NAMES):
            return None
        if missing:
            raise ArtifactError(f"tensor {PREFIX}{missing[0]} is missing")
        return cls(
            token_ids=tensors[PREFIX + "token_ids"],
            row_offsets=tensors[PREFIX + "row_offsets"],
            expert_ids=tensors[PREFIX + "expert_ids"],
            counts=tensors[PREFIX + "counts"],
        )


_NAMES = ("token_ids", "row_offsets", "expert_ids", "counts")
