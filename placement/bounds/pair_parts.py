"""The most that one home's tokens save under `static`, for everything that it may lack.

A home names one rank for each expert that it lacks. So these fall into blocks, one for each rank named, and the pairs
inside blocks save a copy.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_branch import APART
from specmoe.placement.bounds.pair_layer import PairLayer


@compiled
def save_by_parts(
    layer: PairLayer,
    saved: NDArray[np.int64],
    pair_state: NDArray[np.int64],
    most: NDArray[np.int64],
    block: NDArray[np.int64],
) -> None:
    """Write most: int64 [2 ** E], of each set of experts the most that blocks of it save, and block: int64 [2 ** E],
    the one among these with the lowest expert; saved: int64 [P], 0 or more for each pair.

    No block holds a pair that is kept apart, or more experts than a rank.
    """
    E, largest = layer.loads.shape[1], layer.members.shape[1]
    inside = _inside(layer, saved, pair_state, largest)
    most[0], block[0] = 0, 0
    for mask in range(1, 1 << E):
        lowest = mask & -mask
        rest = mask ^ lowest
        most[mask], block[mask] = most[rest], lowest
        others = rest
        while others:
            tried = lowest | others
            if inside[tried] > 0 and inside[tried] + most[mask ^ tried] > most[mask]:
                most[mask], block[mask] = inside[tried] + most[mask ^ tried], tried
            others = (others - 1) & rest


@compiled
def _inside(
    layer: PairLayer, saved: NDArray[np.int64], pair_state: NDArray[np.int64], largest: int
) -> NDArray[np.int64]:
    """int64 [2 ** E]: what the pairs inside each mask save, -1 where it can be no block."""
    E = layer.loads.shape[1]
    inside, size = np.zeros(1 << E, dtype=np.int64), np.zeros(1 << E, dtype=np.int64)
    number = np.zeros((E, E), dtype=np.int64)
    for p in range(len(layer.pair)):
        number[layer.first[p], layer.second[p]] = number[layer.second[p], layer.first[p]] = p
    highest = 0
    for mask in range(1, 1 << E):
        if mask >> highest + 1:
            highest += 1
        rest = mask ^ (1 << highest)
        size[mask] = size[rest] + 1
        inside[mask] = -1 if size[mask] > largest else inside[rest]
        for expert in range(highest):
            if inside[mask] >= 0 and rest >> expert & 1:
                p = number[expert, highest]
                inside[mask] = -1 if pair_state[p] == APART else inside[mask] + saved[p]
    return inside
