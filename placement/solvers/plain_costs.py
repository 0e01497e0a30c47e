"""What tokens cost with one copy of each expert: the ranks that their experts are on, by where they start."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled


@compiled
def plain_costs(
    sets: NDArray[np.int32], rank_of_place: NDArray[np.int32], link: NDArray[np.float64]
) -> NDArray[np.float32]:
    """float32 [S, R]: what a token of each set, int32 [S, K], costs when it starts on each rank.

    rank_of_place: int32 [P]; link: float64 [R, R], what a copy from a home (row) to a rank (column) costs.
    """
    ep_size = len(link)
    to_rank = link.T.astype(np.float32)
    last_seen = np.full(ep_size, -1, dtype=np.int64)
    cost = np.zeros((len(sets), ep_size), dtype=np.float32)
    for s in range(len(sets)):
        for k in range(sets.shape[1]):
            rank = rank_of_place[sets[s, k]]
            if last_seen[rank] == s:
                continue
            last_seen[rank] = s
            for home in range(ep_size):
                cost[s, home] += to_rank[rank, home]
    return cost
