"""How much search a layer's size allows: cost stays linear in tokens, and as good as quadratic in experts."""

import numpy as np
from numpy.typing import NDArray

# Searches weigh a draw of tokens past so many (token, expert) pairs: it says as much of where experts belong.
_SEARCHED_PAIRS = 400_000
# Rounds of homes are as many as asked for up to so many slots, fewer beyond: each takes longer.
_ALL_ROUNDS = 64
# Starts are as many as wanted up to so many slots, and so are proposals for annealing, which begins as hot; beyond,
# pairs of slots grow with the square, and so do the meetings that time allows shrink. What has less time to cool must
# not begin as hot.
_ALL_PROPOSALS = 128
_KICKS_PER_SLOT = 0.5
# Up to so many slots swap searches from random placements mostly end alike; beyond, they are annealed first, as far as
# that is affordable: 256 experts on 32 ranks took ten seconds a layer, for half a percent.
_ALIKE, _ANNEALED_UP_TO = 48, 192
_ANNEALED_SWAPS = 30
# So many pairs of slots meet when copies are annealed. With the usual number 72 slots ended 2 % dearer, 144 slots 5 %;
# with more of them gpt-oss-20b, 40 slots, took over 20 seconds and gained nothing.
_FEWEST_PAIRS, _USUAL_PAIRS, _MOST_PAIRS = 500, 1500, 12_000
# An item for annealing is a set at a home; each slot is in a share of them that must not vanish.
_ITEMS_PER_SLOT = 20
_FEWEST_ITEMS = 1500


def searched_tokens(num_tokens: int, top_k: int, seed: int) -> NDArray[np.int64]:
    """int64 [N], increasing: the rows of a sample that searches weigh, all of them where that is affordable."""
    limit = max(1, _SEARCHED_PAIRS // top_k)
    if num_tokens <= limit:
        return np.arange(num_tokens, dtype=np.int64)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(num_tokens, size=limit, replace=False))


def affordable_starts(wanted: int, num_slots: int) -> int:
    """How many of `wanted` starts a layer with `num_slots` slots on all ranks gets; 0 is possible."""
    return round(wanted * annealing_share(num_slots))


def affordable_rounds(wanted: int, num_slots: int) -> int:
    """How many of `wanted` rounds of homes a layer with `num_slots` slots on all ranks gets; 0 is possible."""
    return round(wanted * min(1.0, _ALL_ROUNDS / num_slots))


def affordable_kicks(num_slots: int) -> int:
    """How often a swap search begins anew near the best placement known: the more slots, the more ends there are.

    Past what is affordable fewer by the fourth power: each search takes longer too.
    """
    return round(_KICKS_PER_SLOT * num_slots * annealing_share(num_slots) ** 2)


def annealed_swaps(num_slots: int) -> int:
    """How many swaps are proposed when a placement of single copies is annealed, 0 where it is not.

    As many for every pair of slots up to 128 of them, as many in all beyond.
    """
    if not _ALIKE < num_slots <= _ANNEALED_UP_TO:
        return 0
    return round(_ANNEALED_SWAPS * num_slots**2 * annealing_share(num_slots))


def annealed_items(num_slots: int) -> int:
    """How many items stand for all when copies are annealed."""
    return max(_FEWEST_ITEMS, _ITEMS_PER_SLOT * num_slots)


def meeting_pairs(num_slots: int, *, is_quick: bool) -> int:
    """How many pairs of slots count when copies are annealed: all of 49 to 109 slots, fewer of more than 128.

    is_quick: whether moves are priced within one number, so that fewer need not be.
    """
    if num_slots <= _ALIKE:
        return min(max(num_slots**2, _FEWEST_PAIRS), _USUAL_PAIRS)
    most = _MOST_PAIRS if is_quick else max(_USUAL_PAIRS, round(_MOST_PAIRS * annealing_share(num_slots)))
    return min(num_slots**2, most)


def annealing_share(num_slots: int) -> float:
    """What temperatures, and how often two slots meet, are multiplied by."""
    return min(1.0, _ALL_PROPOSALS / num_slots) ** 2
