"""A bound for any size in one pass over the tokens: how many companions an expert can have on its rank.

With c slots on the largest rank, an expert shares its rank with at most c - 1 others. `column_score.py` says, per
expert, how few (token, rank) pairs it can then add: its tokens, less what its c - 1 best companions can save. All
experts together give at least that many pairs; as many of them as can be are at home. A rank that holds c experts is
the home of at most its own tokens, and serves at most the c most frequent of their (token, expert) pairs there.

Besides, a token's K experts need at least K / c ranks, all but one of them away from home.
"""

import numpy as np

from specmoe.placement.bounds.groups import groups_of_sets, weigh
from specmoe.placement.bounds.layer_case import LayerCase


def companions_bound(case: LayerCase) -> float:
    """Copies over all tokens that no placement goes below; with replicas only the ranks that a token needs count."""
    most = int(case.slots.max())
    top_k = case.sets.shape[1]
    needed = case.num_tokens * (-(-top_k // most) - 1)
    if case.has_replicas:
        return float(needed)
    return float(max(needed, np.ceil(_pairs(case, most) - _at_home(case) - 1e-3), 0))


def _pairs(case: LayerCase, most: int) -> float:
    """How many (token, rank) pairs there are at least, by the m of `column_score.py` that says most."""
    E, largest = case.num_experts, min(case.sets.shape[1], most)
    weights = weigh(groups_of_sets(case.sets, E), case.tokens_of_set.astype(np.int32))
    single = float(weights.single.sum())
    companions = float(np.sort(weights.pair.reshape(E, E), axis=1)[:, E - most + 1 :].sum())
    by_pairs = [2 / (m + 1) * single - companions / (m * (m + 1)) for m in range(1, largest)]
    return float(max([single / largest, *by_pairs]))


def _at_home(case: LayerCase) -> float:
    """How many of those pairs are on the token's home rank at most."""
    total = 0.0
    for rank, slots in enumerate(case.slots):
        tokens = case.homes_of_set[:, rank]
        counts = np.bincount(case.sets.ravel(), weights=np.repeat(tokens, case.sets.shape[1]), minlength=len(case.load))
        total += min(float(tokens.sum()), float(np.sort(counts)[-slots:].sum()))
    return total
