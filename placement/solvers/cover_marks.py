"""What words of the `cover` rule have in common, whatever their width (`cover_words`): ranks as marks, the bits that
`ones` has, bit 0 of every rank's.
"""

import numpy as np

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled


@compiled
def only_holders(word: np.int64, left: np.int64, width: int, ones: int) -> np.int64:
    """Which of the experts `left` a single rank holds, of at most `width`."""
    only = np.int64(0)
    for bit in range(width):
        column = (word >> bit) & ones
        only |= np.int64((column & (column - 1)) == 0) << bit
    return only & left


@compiled
def nearest(marks: np.int64, home: np.int64, width: int) -> int:
    """The lowest set bit that is on a rank after `home`, else the lowest of all."""
    behind = marks & ((np.int64(-1) << (width * home)) << width)
    lowest = behind if behind else marks
    return bit_count((lowest & -lowest) - 1)


@compiled
def nearest_of_each(
    offered: np.int64, left: np.int64, home: np.int64, near: np.int64, width: int, ones: int
) -> np.int64:
    """Each expert of `left` from the nearest rank that offers it, on the home's node where one there does."""
    served = np.int64(0)
    while left:
        bit = bit_count((left & -left) - 1)
        column = (offered >> bit) & ones
        own = column & near
        served |= np.int64(1) << (nearest(own if own else column, home, width) + bit)
        left &= left - 1
    return served
