"""The `cover` rule on words of 4 bits a rank (`cover_words`): up to 4 experts a token, up to 16 ranks.

What each rank offers of the unserved experts, and how many that are, is counted for all ranks at once (as in H. S.
Warren, *Hacker's Delight*, 2012, chapter 5), ten times as fast as rank by rank.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled
from specmoe.placement.solvers.cover_marks import nearest, nearest_of_each, only_holders
from specmoe.wrapping import wrapping_mul, wrapping_sub

MOST_EXPERTS, MOST_RANKS = 4, 16
# Bit 0 of every rank's four, and other patterns in all of them.
_ONES, _TWOS, _FOURS = 0x1111111111111111, 0x2222222222222222, 0x4444444444444444
_EVEN, _LOW = 0x5555555555555555, 0x3333333333333333


@compiled
def copies_in_nibbles(word: np.int64, home: np.int64, full: np.int64, near: np.int64) -> int:
    """The remote ranks that serve a token at `home`; full: all its experts, as bits; near: the bits of all ranks on the
    home's node.
    """
    left = full & ~(word >> (4 * home))
    unserved = bit_count(left)
    counts = _counts(word & wrapping_mul(left, _ONES))
    two = counts & ~_ONES
    # No rank serves two: each expert takes one of its own. A single rank serves up to two that it has both of.
    if unserved < 2 or two == 0:
        return unserved
    four = counts & _FOURS
    if unserved == 2 or four != 0:
        return 1
    three = counts & (counts >> 1) & _ONES
    if unserved == 3:
        return 1 if three != 0 else 2
    if three != 0:
        return 2
    block = _served_first(word, home, left, _TWOS & counts, only_holders(word, left, MOST_EXPERTS, _ONES), near)
    return 2 if _TWOS & _counts(word & wrapping_mul(left & ~block, _ONES)) else 3


@compiled
def served_in_nibbles(word: np.int64, home: np.int64, full: np.int64, near: np.int64) -> np.int64:
    """Which experts each rank serves for a token at `home`, in the shape of `word`; near: as above."""
    left = full & ~(word >> (4 * home))
    served = word & (np.int64(15) << (4 * home))
    only = only_holders(word, left, MOST_EXPERTS, _ONES)
    if only == left:
        return served | (word & wrapping_mul(left, _ONES))
    while left:
        offered = word & wrapping_mul(left, _ONES)
        counts = _counts(offered)
        most = counts & _FOURS
        if most == 0:
            most = (counts & (counts >> 1) & _ONES) << 1
        if most == 0:
            most = counts & _TWOS
        if most == 0:
            return served | nearest_of_each(offered, left, home, near, MOST_EXPERTS, _ONES)
        place = _place_first(word, home, most, only, near)
        block = (word >> place) & left
        served |= block << place
        left &= ~block
    return served


@compiled
def shift_in_nibbles(now: np.int64, then: np.int64, weight: float, load: NDArray[np.float64]) -> None:
    """Add to load, float64 [R], `weight` for every expert that a rank serves `then` and not `now`, less the reverse."""
    fewer, more, differing = _counts(now), _counts(then), now ^ then
    while differing:
        place = bit_count(~differing & wrapping_sub(differing, 1)) & ~3
        load[place >> 2] += weight * (((more >> place) & 7) - ((fewer >> place) & 7))
        differing &= ~(np.int64(15) << place)


@compiled
def _counts(word: np.int64) -> np.int64:
    """How many of each rank's four bits are set, as a number in these."""
    halves = wrapping_sub(word, (word >> 1) & _EVEN)
    return (halves & _LOW) + ((halves >> 2) & _LOW)


@compiled
def _place_first(word: np.int64, home: np.int64, most: np.int64, only: np.int64, near: np.int64) -> int:
    """Where the word has the rank that serves first, of those that `most` marks with one bit anywhere in their four."""
    marks = (most | (most >> 1) | (most >> 2)) & _ONES
    if marks & near:
        marks &= near
    if marks & (marks - 1) and only:
        counts = _counts(word & wrapping_mul(marks, 15) & wrapping_mul(only, _ONES))
        three = counts & (counts >> 1) & _ONES
        two, one = (counts >> 1) & _ONES, counts & _ONES
        if three:
            marks = three
        elif two:
            marks = two
        elif one:
            marks = one
    return nearest(marks, home, MOST_EXPERTS)


@compiled
def _served_first(
    word: np.int64, home: np.int64, left: np.int64, most: np.int64, only: np.int64, near: np.int64
) -> np.int64:
    """Which of `left` that rank serves."""
    return (word >> _place_first(word, home, most, only, near)) & left
