"""Merge tokens that use the same set of experts: a layer's search then works on distinct sets with weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.compiled import compiled

_LOAD_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class ExpertSets:
    """One layer's distinct expert sets.

    sets: int32 [S, K], each row increasing; set_of_token: int32 [T], the row of each token's set.
    """

    sets: NDArray[np.int32]
    set_of_token: NDArray[np.int32]


def expert_sets(expert_ids: Array, num_logical_experts: int) -> ExpertSets:
    """The distinct sets among `expert_ids`, unsigned integers [T, K] of one layer."""
    ordered = np.sort(expert_ids, axis=1).astype(np.int64)
    # Column by column, so that the key stays below 2**63 for any number of experts and any top-k.
    key = ordered[:, 0]
    spread = num_logical_experts
    for column in ordered.T[1:]:
        if spread > (1 << 62) // num_logical_experts:
            values, key = np.unique(key, return_inverse=True)
            spread = len(values)
        key = key * num_logical_experts + column
        spread *= num_logical_experts
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return ExpertSets(sets=ordered[first].astype(np.int32), set_of_token=inverse.astype(np.int32))


def rows_by_expert(sets: NDArray[np.int32], num_experts: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """int64 [E + 1] and int32 [S * K]: expert e is in the sets `rows[offsets[e] : offsets[e + 1]]`, increasing."""
    flat = sets.ravel()
    rows = (np.argsort(flat, kind="stable") // sets.shape[1]).astype(np.int32)
    offsets = np.zeros(num_experts + 1, dtype=np.int64)
    np.cumsum(np.bincount(flat, minlength=num_experts), out=offsets[1:])
    return offsets, rows


@compiled
def keep_loads(
    weight: NDArray[np.float64], offsets: NDArray[np.int64], rows: NDArray[np.int32], load: NDArray[np.float64]
) -> None:
    """Scale the weights, float64 [N], in place so that the sets that hold an expert weigh about its load, float64 [E].

    A draw of sets has the right loads but for chance, which a load cap would take for truth. offsets, rows: as of
    `rows_by_expert`. One expert after the other, a few times over, as in iterative proportional fitting.
    """
    for _ in range(_LOAD_ROUNDS):
        for expert in range(len(load)):
            total = 0.0
            for position in range(offsets[expert], offsets[expert + 1]):
                total += weight[rows[position]]
            if total > 0.0:
                for position in range(offsets[expert], offsets[expert + 1]):
                    weight[rows[position]] *= load[expert] / total
