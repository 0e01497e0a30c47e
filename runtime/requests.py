"""Which rank a request goes to under `dp` attention: the one that pulls it most, among those that are not too full."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.plan import PlacementPlan


class RequestScheduler:
    """Places requests one by one, as they arrive, on `ranks` of a plan (all of them by default).

    A request's pull to rank r is the sum of the plan's `token_affinity[:, r]` over its known tokens; an id outside the
    table pulls nowhere. It goes to the rank with the strongest pull among the ranks whose tokens so far exceed the
    least-filled rank's by no more than the longest request so far, this one included. Ties, and no pull at all, go to
    the least-filled rank, then the lowest number.
    """

    def __init__(self, plan: PlacementPlan, ranks: range | None = None) -> None:
        self.ranks = ranks or range(plan.ep_size)
        self._affinity = plan.token_affinity
        self._filled = np.zeros(len(self.ranks), dtype=np.int64)
        self._longest = 0

    def place(self, known_token_ids: Sequence[int] | NDArray[np.integer], num_tokens: int | None = None) -> int:
        """The rank for one request; num_tokens: how long it will be in all, the known tokens where nothing is given."""
        known = np.asarray(known_token_ids, dtype=np.int64)
        length = max(len(known) if num_tokens is None else num_tokens, 0)
        self._longest = max(self._longest, length)
        has_room = self._filled <= self._filled.min() + self._longest
        pull = np.where(has_room, self._pull(known), -np.inf)
        best = min(range(len(self.ranks)), key=lambda rank: (-pull[rank], self._filled[rank], rank))
        self._filled[best] += length
        return self.ranks[best]

    def _pull(self, known: NDArray[np.int64]) -> NDArray[np.float64]:
        if self._affinity is None:
            return np.zeros(len(self.ranks))
        in_table = known[(known >= 0) & (known < len(self._affinity))]
        # Sums of float16 values are exact in float64, so that ties are ties.
        pulls = self._affinity[in_table, self.ranks.start : self.ranks.stop].astype(np.float64)
        return np.asarray(pulls.sum(axis=0))


def assign_requests(plan: PlacementPlan, token_ids: Sequence[Sequence[int]]) -> list[int]:
    """The rank for each of several requests, given in order of arrival by the token ids of their prompts."""
    scheduler = RequestScheduler(plan)
    return [scheduler.place(tokens) for tokens in token_ids]
