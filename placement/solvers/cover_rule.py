"""The `cover` rule on bits: a token's ranks by counting which of its experts each rank holds.

Ties go to the home's node, then to the rank that is the only one for most of the unserved experts, as `dispatch` must
name it for these, then to the nearest. What `dispatch` says of other experts hardly moves the number of copies and is
left out: a search asks for it millions of times. Arrays come one by one, for a compiled function that takes them out of
a tuple counts references at every access.

Of many ranks few hold any of a token's experts. These are marked, as bits of whole numbers, and no other is looked at.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled


@compiled
def mark_words(ep_size: int) -> int:
    """How many numbers hold the marks of `ep_size` ranks."""
    return (ep_size + 63) // 64


@compiled
def mark_of(rank: int) -> np.int64:
    """The bit of a rank in its number, `rank // 64` of its row."""
    return np.int64(1) << (rank & 63)


@compiled
def note_holders(
    sets: NDArray[np.int32],
    s: int,
    holders: NDArray[np.int16],
    num_holders: NDArray[np.int16],
    held: NDArray[np.uint32],
    marks: NDArray[np.int64],
    row: int,
) -> None:
    """Write to `held[row]`, zeros [R], bit k for every rank that holds the k-th expert of set s, and mark these ranks
    in `marks[row]`, zeros [`mark_words`].

    holders: int16 [E, R], the ranks of each expert, the first num_holders: int16 [E] of a row.
    """
    for k in range(sets.shape[1]):
        expert = sets[s, k]
        for position in range(num_holders[expert]):
            rank = holders[expert, position]
            held[row, rank] |= np.uint32(1) << np.uint32(k)
            marks[row, rank >> 6] |= mark_of(rank)


@compiled
def serve_bits(
    held: NDArray[np.uint32],
    marks: NDArray[np.int64],
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

    marks: int64 [N, `mark_words`], each rank that holds any of them is marked, others may be. Adds `weight` to load
    [R] for every pair, where it is not 0. ranks, serves: int64 [R + 1], for the ranks of the cover and the experts that
    each serves.
    """
    full = (1 << top_k) - 1
    left = full & ~np.int64(held[row, home])
    found = 0
    once, twice = left & 0, left & 0
    for word in range(marks.shape[1]):
        marked = marks[row, word]
        while marked:
            rank = 64 * word + bit_count((marked & -marked) - 1)
            marked &= marked - 1
            offered = np.int64(held[row, rank]) & left
            # Without a branch: a rank that offers nothing is written over.
            ranks[found], serves[found] = rank, offered
            found += offered != 0
            twice |= once & offered
            once |= offered
    if twice and weight == 0.0 and surcharge == 0.0:
        return float(_count_cover(left, once & ~twice, home, node, ranks, serves, found))
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
    picked = 0
    while left:
        best = _first_of_cover(left, only, home, node, ranks, serves, picked, found)
        rank, offered = ranks[best], serves[best] & left
        ranks[best], serves[best] = ranks[picked], serves[picked]
        ranks[picked], serves[picked] = rank, offered
        left &= ~offered
        picked += 1
    return picked


@compiled
def _count_cover(
    left: np.int64,
    only: np.int64,
    home: int,
    node: NDArray[np.int32],
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
    found: int,
) -> int:
    """How many ranks `_pick_cover` brings to the front."""
    picked = 0
    while left:
        best = _first_of_cover(left, only, home, node, ranks, serves, 0, found)
        offered = serves[best] & left
        # Where no rank serves two, each expert takes one of its own.
        if offered & (offered - 1) == 0:
            return picked + bit_count(left)
        left &= ~offered
        picked += 1
    return picked


@compiled
def _first_of_cover(
    left: np.int64,
    only: np.int64,
    home: int,
    node: NDArray[np.int32],
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
    begin: int,
    end: int,
) -> int:
    """Which of `ranks[begin:end]` serves first: the one that serves most, or by the tie-breaks above."""
    ep_size = len(node)
    # The tie-breaks as digits of one number; no token has more than 63 experts.
    near, named = ep_size * 64, ep_size
    best, most, best_score = begin, 1, -1
    for position in range(begin, end):
        offered = serves[position] & left
        count = bit_count(offered)
        if count < most:
            continue
        rank = ranks[position]
        score = home - rank if rank < home else home - rank + ep_size
        score += near * (node[rank] == node[home]) + named * bit_count(offered & only)
        if count > most or score > best_score:
            best, most, best_score = position, count, score
    return best


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
