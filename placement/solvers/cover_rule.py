"""The `cover` rule on bits: a token's ranks by counting which of its experts each rank holds.

Ties go to the home's node, then to the rank that is the only one for most of the unserved experts, as `dispatch` must
name it for these, then to the nearest. What `dispatch` says of other experts hardly moves the number of copies and is
left out: a search asks for it millions of times. Arrays come one by one, for a compiled function that takes them out of
a tuple counts references at every access.

Of many ranks few hold any of a token's experts. These are marked, as bits of whole numbers, and no other is looked at.
Fewer still hold two: once none does, each expert that is left takes the nearest of its own ranks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled

# No token has more: the experts of a token are the bits of a number.
_MOST_EXPERTS = 64


class _Offers(NamedTuple):
    """The first `several` ranks of a list offer several experts of a token, those from `single` on one each; only: the
    experts that a single rank offers, as bits.
    """

    several: int
    single: int
    only: np.int64


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
def ties_of(node: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 [R, R]: by which of two ranks that offer as much a home, the row, is served: the one on its node, then the
    nearest; 0 for itself. node: int32 [R].
    """
    ep_size = len(node)
    tie = np.zeros((ep_size, ep_size), dtype=np.int64)
    for home in range(ep_size):
        for rank in range(ep_size):
            if rank != home:
                tie[home, rank] = home - rank if rank < home else home - rank + ep_size
                tie[home, rank] += _MOST_EXPERTS * ep_size * (node[rank] == node[home])
    return tie


@compiled
def find_cover(
    held: NDArray[np.uint32],
    marks: NDArray[np.int64],
    row: int,
    home: int,
    top_k: int,
    tie: NDArray[np.int64],
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
    served: NDArray[np.int16],
    to: int,
) -> int:
    """How many remote ranks serve a token at `home` whose experts are held as `held[row]` says; writes the rank of each
    of its experts to `served[to]`.

    marks: int64 [N, `mark_words`], each rank that holds any of them is marked, others may be. tie: as of `ties_of`;
    ranks, serves: int64 [R + 1], for the ranks that offer several experts, and from the end those that offer one.
    """
    left = ((1 << top_k) - 1) & ~np.int64(held[row, home])
    for k in range(top_k):
        served[to, k] = home
    offers = _offers(held, marks, row, left, ranks, serves)
    found = 0
    while offers.several > 0:
        best = _first_of_cover(left, home, tie, ranks, serves, offers)
        offered = serves[best] & left
        if offered & (offered - 1) == 0:
            break
        left &= ~offered
        found += 1
        while offered:
            served[to, bit_count((offered & -offered) - 1)] = ranks[best]
            offered &= offered - 1
    _serve_nearest(left, home, tie, ranks, serves, 0, offers.several, served, to)
    _serve_nearest(left, home, tie, ranks, serves, offers.single, len(ranks), served, to)
    return found + bit_count(left)


@compiled
def _offers(
    held: NDArray[np.uint32],
    marks: NDArray[np.int64],
    row: int,
    left: np.int64,
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
) -> _Offers:
    """Write which ranks hold some of the experts `left`, and which of them, to both ends of `ranks` and `serves`."""
    several, last = 0, len(ranks) - 1
    once, twice = left & 0, left & 0
    for word in range(marks.shape[1]):
        marked = marks[row, word]
        while marked:
            rank = 64 * word + bit_count((marked & -marked) - 1)
            marked &= marked - 1
            offered = np.int64(held[row, rank]) & left
            # Without a branch: what does not belong is written over.
            is_several = (offered & (offered - 1)) != 0
            ranks[several], serves[several] = rank, offered
            several += is_several
            ranks[last], serves[last] = rank, offered
            last -= (offered != 0) & (not is_several)
            twice |= once & offered
            once |= offered
    return _Offers(several, last + 1, once & ~twice)


@compiled
def _first_of_cover(
    left: np.int64,
    home: int,
    tie: NDArray[np.int64],
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
    offers: _Offers,
) -> int:
    """Which of the ranks that offer several serves first: the one that serves most, or by the tie-breaks above."""
    best, most = 0, 0
    for position in range(offers.several):
        offered = serves[position] & left
        # The rule and its tie-breaks as digits of one number, the experts of a single rank among those of `tie`.
        score = 4 * _MOST_EXPERTS * bit_count(offered) + bit_count(offered & offers.only)
        score = len(tie) * score + tie[home, ranks[position]]
        if score > most:
            best, most = position, score
    return best


@compiled
def _serve_nearest(
    left: np.int64,
    home: int,
    tie: NDArray[np.int64],
    ranks: NDArray[np.int64],
    serves: NDArray[np.int64],
    begin: int,
    end: int,
    served: NDArray[np.int16],
    to: int,
) -> None:
    """Let `ranks[begin:end]`, which offer one of the experts `left` each at most, serve it where they are nearest."""
    for position in range(begin, end):
        offered = serves[position] & left
        if offered:
            k, rank = bit_count((offered & -offered) - 1), ranks[position]
            if tie[home, rank] > tie[home, served[to, k]]:
                served[to, k] = rank


@compiled
def cost_of_cover(
    home: int, node: NDArray[np.int32], surcharge: float, served: NDArray[np.int16], row: int, found: int
) -> float:
    """What the `found` remote ranks in `served[row]` cost a token at `home`: a copy each, `surcharge` per node."""
    cost = float(found)
    if surcharge != 0.0:
        cost += surcharge * _other_nodes(home, node, served, row)
    return cost


@compiled
def _other_nodes(home: int, node: NDArray[np.int32], served: NDArray[np.int16], row: int) -> int:
    """How many nodes but the home's are among `served[row]`."""
    count = 0
    for k in range(served.shape[1]):
        own = node[served[row, k]]
        is_new = own != node[home]
        for before in range(k):
            is_new &= node[served[row, before]] != own
        count += is_new
    return count
