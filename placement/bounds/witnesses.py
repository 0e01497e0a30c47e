"""How many ranks a token needs at least, by some of its experts and its home: its *witnesses*.

Vertices are experts 0 .. E - 1 and ranks E .. E + R - 1; a rank holds its experts and itself, and shared[v, w] says how
many ranks hold both v and w. For any set U of a token's experts, its home among them or not,

    1 + remote copies  >=  |U|  -  sum over pairs v, w of U of shared[v, w].

*Proof.* Each of U is served by one rank that holds it, the home by itself. A rank that serves j >= 1 of U serves
j (j - 1) / 2 >= j - 1 pairs, all of which it holds; so the right side is at most the number of ranks that serve some
of U, and all of these but the home are paid for.

It is equal where U has one expert of each rank that serves the token, the home for those at home.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.layer_case import LayerCase

# Among equals first comes what shares little with the token's other vertices.
_TIE = 1e-3
_LEAST_GAIN = 1e-6


def seated_members(case: LayerCase) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The vertices of each kind of token, its home the last: int32 [N, K + 1]; and how many tokens: float64 [N]."""
    rows, homes = np.nonzero(case.homes_of_set)
    members = np.column_stack([case.sets[rows], case.num_experts + homes]).astype(np.int32)
    return members, case.homes_of_set[rows, homes].astype(np.float64)


@compiled
def call_witnesses(
    members: NDArray[np.int32],
    tokens: NDArray[np.float64],
    shared: NDArray[np.float32],
    pairs: NDArray[np.float64],
) -> float:
    """Choose for each kind of token, members [N, m], the witnesses that prove most at `shared` [V, V], one by one; how
    many there are over all tokens.

    pairs: float64 [V, V], to whose lower half each pair of them is added.
    """
    m, total = members.shape[1], 0.0
    among = np.zeros((m, m), dtype=np.float32)
    tie, lost = np.zeros(m), np.zeros(m)
    chosen = np.zeros(m, dtype=np.int64)
    for t in range(len(members)):
        for i in range(m):
            tie[i] = 0.0
            lost[i] = 0.0
            row = shared[members[t, i]]
            for j in range(m):
                among[i, j] = row[members[t, j]]
        for i in range(m):
            for j in range(m):
                if i != j:
                    tie[i] += _TIE * among[i, j]
        count = 0
        while count < m:
            best, least = -1, 1.0 - _LEAST_GAIN
            for i in range(m):
                if lost[i] + tie[i] < least:
                    best, least = i, lost[i] + tie[i]
            if best < 0:
                break
            chosen[count] = best
            count += 1
            for i in range(m):
                lost[i] += among[best, i]
            lost[best] = np.inf
        total += tokens[t] * count
        for i in range(count):
            v = members[t, chosen[i]]
            for j in range(i):
                w = members[t, chosen[j]]
                pairs[max(v, w), min(v, w)] += tokens[t]
    return total
