"""A dispatch table in which each copy serves as many home ranks as its quota says."""

import numpy as np
from numpy.typing import NDArray


def quota_dispatch(
    expert_of_slot: NDArray[np.int32],
    quota: NDArray[np.int64],
    rank_of_slot: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
) -> NDArray[np.int32]:
    """int32 [R, E]: the slot that each home rank uses; expert_of_slot, quota, rank_of_slot: [P]; node_of_rank: [R].

    A rank that holds an expert uses its own copy. Of the others, those that have a copy on their node come first.
    """
    ep_size, copies = len(node_of_rank), np.bincount(expert_of_slot)
    table = np.empty((ep_size, len(copies)), dtype=np.int32)
    table[:, expert_of_slot] = np.arange(len(expert_of_slot), dtype=np.int32)
    for expert in np.flatnonzero(copies > 1):
        slots = np.flatnonzero(expert_of_slot == expert)
        table[:, expert] = _share_out(slots, quota[slots].copy(), rank_of_slot[slots], node_of_rank)
    return table


def _share_out(
    slots: NDArray[np.int64], left: NDArray[np.int64], ranks: NDArray[np.int32], node_of_rank: NDArray[np.int32]
) -> NDArray[np.int64]:
    """int64 [R]: one expert's slot for each home rank; left: its slots' quotas, used up here; ranks: theirs."""
    used = np.full(len(node_of_rank), -1, dtype=np.int64)
    used[ranks] = slots
    left -= 1
    for on_node in (True, False):
        for home in np.flatnonzero(used < 0):
            usable = np.where((node_of_rank[ranks] == node_of_rank[home]) | (not on_node), left, 0)
            copy = int(usable.argmax())
            if usable[copy] > 0:
                used[home] = slots[copy]
                left[copy] -= 1
    return used
