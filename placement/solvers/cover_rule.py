"""The `cover` rule on bits: a token's ranks by counting which of its experts each rank holds.

Ties go to the home's node, then to the rank that is the only one for most of the unserved experts, as `dispatch` must
name it for these, then to the nearest. What `dispatch` says of other experts hardly moves the number of copies and is
left out: a search asks for it millions of times. Arrays come one by one, for a compiled function that takes them out of
a tuple counts references at every access.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled


@compiled
def note_holders(
    sets: NDArray[np.int32],
    s: int,
    holders: NDArray[np.int16],
    num_holders: NDArray[np.int16],
    held: NDArray[np.uint32],
    row: int,
) -> None:
    """Write to `held[row]`, zeros [R], bit k for every rank that holds the k-th expert of set s.

    holders: int16 [E, R], the ranks of each expert, the first num_holders: int16 [E] of a row.
    """
    for k in range(sets.shape[1]):
        expert = sets[s, k]
        for position in range(num_holders[expert]):
            held[row, holders[expert, position]] |= np.uint32(1) << np.uint32(k)


@compiled
def serve_bits(
    held: NDArray[np.uint32],
    row: int,
    home: int,
    top_k: int,
    node: NDArray[np.int32],
    surcharge: float,
    weight: float,
    load: NDArray[np.float64],
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
) -> float:
    """The copies of a token at `home` whose experts are held as `held[row]` says, with `surcharge` per other node.

    Adds `weight` to load [R] for every pair, where it is not 0. ranks, serves: int64 [R + 1], for the ranks of the
    cover and the experts that each serves.
    """
    ep_size = len(node)
    full = (1 << top_k) - 1
    left = full & ~np.int64(held[row, home])
    found = 0
    once, twice = left & 0, left & 0
    for rank in range(ep_size):
        offered = np.int64(held[row, rank]) & left
        # Without a branch: a rank that offers nothing is written over.
        ranks[found], serves[found] = rank, offered
        found += offered != 0
        twice |= once & offered
        once |= offered
    if twice:
        found = _pick_cover(left, once & ~twice, home, node, ranks, serves, found)
    if weight != 0.0:
        load[home] += weight * bit_count(full ^ left)
        for position in range(found):
            load[ranks[position]] += weight * bit_count(serves[position])
    cost = float(found)
    if surcharge != 0.0:
        cost += surcharge * _other_nodes(home, node, ranks, found)
    return cost


@compiled
def _pick_cover(
    left: np.int64,
    only: np.int64,
    home: int,
    node: NDArray[np.int32],
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
    found: int,
) -> int:
    """Of the first `found` ranks bring those of the cover to the front, with the experts that each serves; how many.

    left: the experts to serve, as bits; only: those of a single rank; serves: on entry what each rank could serve.
    """
    ep_size = len(node)
    # The rule and its tie-breaks as digits of one number; no token has more than 63 experts.
    named, near, held = ep_size, ep_size * 64, 2 * ep_size * 64
    picked = 0
    while left:
        best, best_score = picked, -1
        for position in range(picked, found):
            rank, offered = ranks[position], serves[position] & left
            if not offered:
                continue
            score = home - rank if rank < home else home - rank + ep_size
            score += held * bit_count(offered) + near * (node[rank] == node[home]) + named * bit_count(offered & only)
            if score > best_score:
                best, best_score = position, score
        rank, offered = ranks[best], serves[best] & left
        ranks[best], serves[best] = ranks[picked], serves[picked]
        ranks[picked], serves[picked] = rank, offered
        left &= ~offered
        picked += 1
    return picked


@compiled
def _other_nodes(home: int, node: NDArray[np.int32], ranks: NDArray[np.int64], found: int) -> int:
    """How many nodes but the home's the first `found` of `ranks` are on."""
    count = 0
    for position in range(found):
        new = node[ranks[position]] != node[home]
        for before in range(position):
            new = new and node[ranks[before]] != node[ranks[position]]
        count += new
    return count
