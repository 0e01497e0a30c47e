"""What one more copy of each expert on each rank would save under the `cover` rule."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.copies import Copies, Items, Network
from specmoe.placement.solvers.cover_rule import cost_of_cover, find_cover, mark_of, mark_words, note_holders, ties_of


@compiled
def copy_gains(items: Items, copies: Copies, network: Network) -> NDArray[np.float64]:
    """float64 [R, E]: the cost saved under `cover` by one more copy of each expert on each rank, all else equal.

    Only a copy on a token's home, or on a rank that could serve it already, can save one; no other rank is tried.
    """
    sets, homes, weight = items.experts, items.home, items.weight
    holders, num_holders = copies.holders, copies.num_holders
    node, surcharge = network.node, network.surcharge
    ep_size, top_k = len(node), sets.shape[1]
    held, marks = np.zeros((1, ep_size), dtype=np.uint32), np.zeros((1, mark_words(ep_size)), dtype=np.int64)
    ranks, serves = np.zeros(ep_size + 1, dtype=np.int64), np.zeros(ep_size + 1, dtype=np.int64)
    served, tie = np.zeros((1, top_k), dtype=np.int16), ties_of(node)
    gain = np.zeros((ep_size, len(num_holders)))
    for t in range(len(sets)):
        home = homes[t]
        held[:], marks[:] = 0, 0
        note_holders(sets, t, holders, num_holders, held, marks, 0)
        marks[0, home >> 6] |= mark_of(home)
        found = find_cover(held, marks, 0, home, top_k, tie, ranks, serves, served, 0)
        before = cost_of_cover(home, node, surcharge, served, 0, found)
        if before == 0.0:
            continue
        for rank in range(ep_size):
            if held[0, rank] == 0 and rank != home:
                continue
            for k in range(top_k):
                bit = np.uint32(1) << np.uint32(k)
                # What the home serves already needs no other copy.
                if (held[0, rank] | held[0, home]) & bit:
                    continue
                held[0, rank] ^= bit
                found = find_cover(held, marks, 0, home, top_k, tie, ranks, serves, served, 0)
                after = cost_of_cover(home, node, surcharge, served, 0, found)
                held[0, rank] ^= bit
                gain[rank, sets[t, k]] += weight[t] * (before - after)
    return gain
