"""A simple, fair dispatch table: the own copy, else one on the same node, else copies taken evenly by the ranks."""

import numpy as np
from numpy.typing import NDArray


def fair_dispatch(
    physical_to_logical: NDArray[np.int32],
    rank_of_physical: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
    expert_counts: NDArray[np.int64],
) -> NDArray[np.int32]:
    """`dispatch_slot` int32 [L, R, E] for a placement, knowing no more than how often each expert is used.

    physical_to_logical: int32 [L, P]; rank_of_physical: int32 [P]; node_of_rank: int32 [R]; expert_counts: int64
    [L, E]. Every rank is taken to use an expert equally often. Of the copies that a rank may use it takes the one with
    the fewest ranks so far, then the one on the rank with the least load so far; the hottest experts come first.
    """
    tables = [
        _layer_table(experts, rank_of_physical, node_of_rank, counts)
        for experts, counts in zip(physical_to_logical, expert_counts, strict=True)
    ]
    return np.stack(tables)


def _layer_table(
    experts: NDArray[np.int32],
    rank_of_physical: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> NDArray[np.int32]:
    """int32 [R, E]: one layer of `fair_dispatch`."""
    ep_size, copies = len(node_of_rank), np.bincount(experts, minlength=len(counts))
    table = np.empty((ep_size, len(counts)), dtype=np.int32)
    table[:, experts] = np.arange(len(experts), dtype=np.int32)
    share = counts / ep_size
    single = copies[experts] == 1
    rank_load = np.zeros(ep_size, dtype=np.float64)
    np.add.at(rank_load, rank_of_physical[single], counts[experts[single]])
    replicated = np.flatnonzero(copies > 1)
    for expert in replicated[np.argsort(-counts[replicated], kind="stable")]:
        slots = np.flatnonzero(experts == expert)
        table[:, expert] = _share_out(slots, rank_of_physical[slots], node_of_rank, share[expert], rank_load)
    return table


def _share_out(
    slots: NDArray[np.int64],
    ranks: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
    share: float,
    rank_load: NDArray[np.float64],
) -> NDArray[np.int64]:
    """int64 [R]: the slot that each rank uses for one expert with copies at `slots` on `ranks`; adds to `rank_load`."""
    used = np.empty(len(node_of_rank), dtype=np.int64)
    used[ranks] = slots
    rank_load[ranks] += share
    sources = np.ones(len(slots), dtype=np.int64)
    for rank in np.setdiff1d(np.arange(len(node_of_rank)), ranks):
        near = np.flatnonzero(node_of_rank[ranks] == node_of_rank[rank])
        usable = near if near.size else np.arange(len(slots))
        chosen = min(usable, key=lambda copy: (sources[copy], rank_load[ranks[copy]], copy))
        used[rank] = slots[chosen]
        sources[chosen] += 1
        rank_load[ranks[chosen]] += share
    return used
