"""The `cover` rule of `cover_rule` within one number, for all ranks at once.

A token's word has as many bits for each rank, bit k of these where the rank holds the token's k-th expert: 4 for up to
4 experts a token and 16 ranks (`cover_nibbles`), 8 for up to 8 experts and 8 ranks (`cover_bytes`). Words are int64,
as numba makes floats of signed and unsigned numbers together: shifts leave no trace of a sign, what may overflow wraps.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers import cover_bytes, cover_nibbles
from specmoe.placement.solvers.cover_bytes import copies_in_bytes, served_in_bytes, shift_in_bytes
from specmoe.placement.solvers.cover_nibbles import copies_in_nibbles, served_in_nibbles, shift_in_nibbles

_NIBBLE, _BYTE = 4, 8
_MOST_IN_NIBBLES = cover_nibbles.MOST_EXPERTS, cover_nibbles.MOST_RANKS
_MOST_IN_BYTES = cover_bytes.MOST_EXPERTS, cover_bytes.MOST_RANKS


@compiled
def word_width(top_k: int, ep_size: int) -> int:
    """The bits that a rank has in a word, 0 where the rule does not fit."""
    if top_k <= _MOST_IN_NIBBLES[0] and ep_size <= _MOST_IN_NIBBLES[1]:
        return _NIBBLE
    return _BYTE if top_k <= _MOST_IN_BYTES[0] and ep_size <= _MOST_IN_BYTES[1] else 0


@compiled
def near_words(node: NDArray[np.int32], width: int) -> NDArray[np.int64]:
    """int64 [R]: the bits of all ranks on each rank's node; none where the ranks do not fit. node: int32 [R]."""
    near = np.zeros(len(node), dtype=np.int64)
    for rank in range(len(node) if width else 0):
        for other in range(len(node)):
            if node[other] == node[rank]:
                near[rank] |= np.int64((1 << width) - 1) << np.int64(width * other)
    return near


@compiled
def word_of(held: NDArray[np.uint32], row: int, width: int) -> np.int64:
    """The word of a token whose experts are held as `held[row]` says, uint32 [N, R]."""
    word = np.int64(0)
    for rank in range(held.shape[1]):
        word |= np.int64(held[row, rank]) << np.int64(width * rank)
    return word


@compiled
def cost_of_word(
    word: np.int64, home: np.int64, full: np.int64, near: NDArray[np.int64], surcharge: float, width: int
) -> float:
    """What a token at `home` costs: a copy for each remote rank that serves it, and `surcharge` per other node.

    full: all its experts, as bits; near: as of `near_words`.
    """
    if surcharge == 0.0:
        if width == _NIBBLE:
            return float(copies_in_nibbles(word, home, full, near[home]))
        return float(copies_in_bytes(word, home, full, near[home]))
    served = served_word(word, home, full, near[home], width) & ~(np.int64((1 << width) - 1) << (width * home))
    cost, far = 0.0, served & ~near[home]
    for rank in range(len(near)):
        serves = (served >> (width * rank)) & full
        cost += serves != 0
        if serves and far & near[rank]:
            cost += surcharge
            far &= ~near[rank]
    return cost


@compiled
def served_word(word: np.int64, home: np.int64, full: np.int64, near: np.int64, width: int) -> np.int64:
    """Which experts each rank serves for a token at `home`, in the shape of `word`; near: the bits of all ranks on the
    home's node.
    """
    if width == _NIBBLE:
        return served_in_nibbles(word, home, full, near)
    return served_in_bytes(word, home, full, near)


@compiled
def shift_pairs(now: np.int64, then: np.int64, weight: float, load: NDArray[np.float64], width: int) -> None:
    """Add to load, float64 [R], `weight` for every expert that a rank serves `then` and not `now`, less the reverse."""
    if width == _NIBBLE:
        shift_in_nibbles(now, then, weight, load)
    else:
        shift_in_bytes(now, then, weight, load)
