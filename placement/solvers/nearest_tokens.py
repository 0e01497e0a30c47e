"""The nearest well-known token of every token id, by the angle between embeddings.

An id that the profile has hardly seen takes the table row of that token in place of its own: ids of like meaning call
for like experts. Ids seen once count as hardly seen; on a small model's held-out text that was as good as keeping their
own rows or better, and ids seen twice did better with their own (benchmarks/nearest_tokens.py).
"""

import numpy as np
from numpy.typing import NDArray

# An id seen so often has a row of its own, and may stand in for others.
WELL_KNOWN = 2
NO_TOKEN = -1

# Similarities held at once.
_PART = 4_000_000


def nearest_tokens(embeddings: NDArray[np.float32], times_seen: NDArray[np.int64]) -> NDArray[np.int32]:
    """int32 [V]: for each id the nearest other one that is well known, `NO_TOKEN` where there is none.

    embeddings: float32 [D, H], of unit length or zeros, row v for id v; ids past D have no neighbour. times_seen: int64
    [V].
    """
    nearest = np.full(len(times_seen), NO_TOKEN, dtype=np.int32)
    rows = embeddings[: len(times_seen)]
    has_row = rows.any(axis=1)
    known = np.flatnonzero(has_row & (times_seen[: len(rows)] >= WELL_KNOWN))
    asked = np.flatnonzero(has_row)
    if len(known) < 2:
        return nearest
    among, at_once = np.ascontiguousarray(rows[known].T), max(1, _PART // len(known))
    for start in range(0, len(asked), at_once):
        ids = asked[start : start + at_once]
        alike = rows[ids] @ among
        own = np.searchsorted(known, ids)
        is_known = (own < len(known)) & (known[np.minimum(own, len(known) - 1)] == ids)
        alike[np.flatnonzero(is_known), own[is_known]] = -np.inf
        nearest[ids] = known[alike.argmax(axis=1)]
    return nearest
