"""What one more copy of each expert on each rank would save under the `cover` rule."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.copies import (
    Copies,
    Items,
    Network,
    add_copy,
    copies_of,
    drop_copy,
    serve_set,
)


@compiled
def copy_gains(items: Items, copies: Copies, network: Network) -> NDArray[np.float64]:
    """float64 [R, E]: the cost saved under `cover` by one more copy of each expert on each rank, all else equal.

    Only a copy on a token's home, or on a rank that serves it already, can save one; no other rank is tried.
    """
    top_k = items.experts.shape[1]
    score = np.zeros(len(network.node), dtype=np.int64)
    served = np.zeros(top_k, dtype=np.int16)
    changed = np.zeros(top_k, dtype=np.int16)
    gain = np.zeros(copies.holds.shape)
    for t in range(len(items.experts)):
        experts, home = items.experts[t], items.home[t]
        serve_set(experts, home, True, copies, network.node, score, served)
        before = copies_of(home, served, network.node, network.surcharge)
        if before == 0.0:
            continue
        for k in range(top_k):
            expert = experts[k]
            for m in range(top_k + 1):
                rank = served[m] if m < top_k else home
                tried = copies.holds[rank, expert] == 1
                for earlier in range(m):
                    tried = tried or served[earlier] == rank
                if tried:
                    continue
                add_copy(copies, expert, rank)
                serve_set(experts, home, True, copies, network.node, score, changed)
                saved = before - copies_of(home, changed, network.node, network.surcharge)
                gain[rank, expert] += items.weight[t] * saved
                drop_copy(copies, expert, rank)
    return gain
