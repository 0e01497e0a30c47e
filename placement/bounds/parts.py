"""The parts of expert sets: every non-empty subset of a token's experts, each kept once for all sets that have it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.groups import Groups, groups_from

# A set of K experts has 2 ** K - 1 parts; of larger sets only so many parts are taken, the whole set among them.
_LARGEST_FOR_ALL = 4


@dataclass(frozen=True, kw_only=True)
class Parts:
    """part_of_set: int64 [S, M], the parts of each set; has: float32 [N, E], 1 where a part has an expert; size:
    float64 [N]; groups: the parts as groups of experts.
    """

    part_of_set: NDArray[np.int64]
    has: NDArray[np.float32]
    size: NDArray[np.float64]
    groups: Groups


def parts_of(sets: NDArray[np.int32], num_experts: int) -> Parts:
    """The parts of sets, int32 [S, K]: all of them up to K = 4, else single experts, neighbours and the whole."""
    kept = _kept_positions(sets.shape[1])
    member = np.zeros((len(kept), len(sets), num_experts), dtype=np.bool_)
    for row, positions in enumerate(kept):
        member[row, np.arange(len(sets))[:, None], sets[:, positions]] = True
    flat = np.packbits(member.reshape(-1, num_experts), axis=1)
    _, first, part = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    has = member.reshape(-1, num_experts)[first]
    size = has.sum(axis=1)
    starts = np.zeros(len(has) + 1, dtype=np.int64)
    np.cumsum(size, out=starts[1:])
    return Parts(
        part_of_set=np.ascontiguousarray(part.reshape(len(kept), len(sets)).T),
        has=has.astype(np.float32),
        size=size.astype(np.float64),
        groups=groups_from(starts, np.nonzero(has)[1].astype(np.int32), num_experts),
    )


def parts_per_set(top_k: int) -> int:
    """M: how many parts a set of `top_k` experts has here."""
    return len(_kept_positions(top_k))


def _kept_positions(top_k: int) -> list[list[int]]:
    if top_k <= _LARGEST_FOR_ALL:
        return [[k for k in range(top_k) if mask >> k & 1] for mask in range(1, 1 << top_k)]
    singles = [[k] for k in range(top_k)]
    pairs = [[k, k + 1] for k in range(top_k - 1)]
    return [*singles, *pairs, list(range(top_k))]
