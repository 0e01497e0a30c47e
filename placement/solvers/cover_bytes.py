"""The `cover` rule on words of 8 bits a rank (`cover_words`): up to 8 experts a token, up to 8 ranks.

As in `cover_nibbles`. Counts go up to 8, so that the rank that serves most is found by asking for so many, then for
fewer: what ranks offer only becomes less as experts are served.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled
from specmoe.placement.solvers.cover_marks import nearest, nearest_of_each, only_holders
from specmoe.wrapping import wrapping_mul, wrapping_sub

MOST_EXPERTS, MOST_RANKS = 8, 8
# Bit 0 of every rank's eight, the bit above what a count needs, and other patterns in all of them.
_ONES, _ABOVE = 0x0101010101010101, 0x1010101010101010
_EVEN, _PAIRS, _LOW = 0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F


@compiled
def copies_in_bytes(word: np.int64, home: np.int64, full: np.int64, near: np.int64) -> int:
    """The remote ranks that serve a token at `home`; full: all its experts, as bits; near: the bits of all ranks on the
    home's node.
    """
    left = full & ~(word >> (8 * home))
    only, most, found = only_holders(word, left, MOST_EXPERTS, _ONES), bit_count(left), 0
    while left:
        counts = _counts(word & wrapping_mul(left, _ONES))
        while _offering(counts, most) == 0:
            most -= 1
        # No rank serves two: each expert takes one of its own.
        if most == 1:
            return found + bit_count(left)
        left &= ~(word >> _place_first(word, home, only & left, _offering(counts, most), near))
        found += 1
    return found


@compiled
def served_in_bytes(word: np.int64, home: np.int64, full: np.int64, near: np.int64) -> np.int64:
    """Which experts each rank serves for a token at `home`, in the shape of `word`; near: as above."""
    left = full & ~(word >> (8 * home))
    served = word & (np.int64(255) << (8 * home))
    only, most = only_holders(word, left, MOST_EXPERTS, _ONES), bit_count(left)
    while left:
        offered = word & wrapping_mul(left, _ONES)
        counts = _counts(offered)
        while _offering(counts, most) == 0:
            most -= 1
        if most == 1:
            return served | nearest_of_each(offered, left, home, near, MOST_EXPERTS, _ONES)
        place = _place_first(word, home, only & left, _offering(counts, most), near)
        block = (word >> place) & left
        served |= block << place
        left &= ~block
    return served


@compiled
def shift_in_bytes(now: np.int64, then: np.int64, weight: float, load: NDArray[np.float64]) -> None:
    """Add to load, float64 [R], `weight` for every expert that a rank serves `then` and not `now`, less the reverse."""
    fewer, more = _counts(now), _counts(then)
    for rank in range(len(load)):
        load[rank] += weight * (((more >> (8 * rank)) & 15) - ((fewer >> (8 * rank)) & 15))


@compiled
def _counts(word: np.int64) -> np.int64:
    """How many of each rank's eight bits are set, as a number in these."""
    halves = wrapping_sub(word, (word >> 1) & _EVEN)
    fours = (halves & _PAIRS) + ((halves >> 2) & _PAIRS)
    return (fours + (fours >> 4)) & _LOW


@compiled
def _offering(counts: np.int64, least: int) -> np.int64:
    """Bit 0 of every rank whose count is `least` or more; least: 1 to 8."""
    return ((counts + (16 - least) * _ONES) & _ABOVE) >> 4


@compiled
def _place_first(word: np.int64, home: np.int64, only: np.int64, marks: np.int64, near: np.int64) -> int:
    """Where the word has the rank that serves first, of those marked; only: the unserved experts of a single rank."""
    if marks & near:
        marks &= near
    if marks & (marks - 1):
        marks = _named(word & wrapping_mul(only, _ONES), marks)
    return nearest(marks, home, MOST_EXPERTS)


@compiled
def _named(only_here: np.int64, marks: np.int64) -> np.int64:
    """Of the ranks marked those that are the only one for most experts; only_here: where a rank is, for these."""
    counts = _counts(only_here & wrapping_mul(marks, 255))
    if counts == 0:
        return marks
    most = 1
    best = _offering(counts, most)
    while best & (best - 1):
        more = _offering(counts, most + 1)
        if more == 0:
            break
        best, most = more, most + 1
    return best
