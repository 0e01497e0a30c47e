"""Which rank a request goes to under `dp` attention, decided as requests arrive."""

import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.errors import UsageError
from specmoe.placement.homes import strongest_pull
from specmoe.placement.plan import PlacementPlan


class RequestRouter:
    """Sends each request to the rank that pulls its tokens most, among those that are not too full. Thread-safe.

    A request's pull to a rank is the sum of the plan's `token_affinity` over the token ids that are known when it
    arrives, its prompt; an id outside the table pulls nowhere. It goes to the strongest pull among the ranks whose
    tokens so far exceed the least-filled rank's by no more than the longest request so far, this one included. Ties,
    and no pull at all, go to the least-filled rank, then the lowest number: the rule by which `evaluate` replays a
    trace.

    plan: a `dp` plan or its path. ranks: the plan's ranks to choose from, all by default. dp_size: where an engine
    spreads each of its data-parallel ranks over several expert-parallel ones, how many it has; consecutive ranks then
    act as one, and `route` gives the engine's number.
    """

    def __init__(
        self,
        plan: PlacementPlan | str | PathLike[str],
        *,
        ranks: range | None = None,
        dp_size: int | None = None,
    ) -> None:
        loaded = plan if isinstance(plan, PlacementPlan) else PlacementPlan.load(Path(plan))
        if loaded.attention != "dp":
            raise UsageError(
                "the plan is for tp attention, where every rank runs every request; a router needs a plan that was "
                "solved with --attention dp"
            )
        self._ranks = range(loaded.ep_size) if ranks is None else ranks
        if not self._ranks or self._ranks.step != 1 or self._ranks[0] < 0 or self._ranks[-1] >= loaded.ep_size:
            raise UsageError(f"ranks is {ranks}, consecutive ranks of the plan's {loaded.ep_size} were expected")
        num_targets = len(self._ranks) if dp_size is None else dp_size
        if num_targets < 1 or len(self._ranks) % num_targets != 0:
            raise UsageError(f"dp_size is {dp_size}, a divisor of the {len(self._ranks)} ranks was expected")
        # Targets are the engine's numbers under dp_size, the plan's otherwise.
        self._first = self._ranks[0] if dp_size is None else 0
        self._pull = _pull_table(loaded.token_affinity, self._ranks, num_targets)
        self._filled = np.zeros(num_targets, dtype=np.int64)
        self._longest = 0
        self._lock = threading.Lock()

    def route(self, token_ids: Sequence[int] | NDArray[np.integer], num_tokens: int | None = None) -> int:
        """The rank for a request whose known tokens are `token_ids`, which from now on counts as its.

        num_tokens: how long the request will be in all, where that can be told; else the known tokens.
        """
        known = np.asarray(token_ids, dtype=np.int64)
        length = max(len(known) if num_tokens is None else num_tokens, 0)
        with self._lock:
            self._longest = max(self._longest, length)
            target = _route(known, self._pull, self._filled, self._longest)
            self._filled[target] += length
        return self._first + int(target)

    def add_tokens(self, rank: int, num_tokens: int) -> None:
        """Count tokens that became known later, such as a long answer's, as `rank`'s; negative ones are taken off."""
        target = rank - self._first
        if not 0 <= target < len(self._filled):
            raise UsageError(f"rank is {rank}, {self._first} to {self._first + len(self._filled) - 1} was expected")
        with self._lock:
            self._filled[target] += num_tokens

    def reset(self) -> None:
        """Forget all requests so far."""
        with self._lock:
            self._filled[:] = 0
            self._longest = 0

    @property
    def tokens_of_rank(self) -> list[int]:
        """How many tokens each rank was given so far."""
        with self._lock:
            tokens: list[int] = self._filled.tolist()
        return tokens


def route_requests(plan: PlacementPlan, token_ids: Sequence[Sequence[int]]) -> list[int]:
    """The rank for each of several requests, given in order of arrival by the token ids of their prompts."""
    router = RequestRouter(plan)
    return [router.route(tokens) for tokens in token_ids]


def _pull_table(affinity: NDArray[np.float16] | None, ranks: range, num_targets: int) -> NDArray[np.float32]:
    """float32 [V, targets]: the affinity to each target, that of its ranks together; V = 0 without affinity."""
    if affinity is None:
        return np.zeros((0, num_targets), dtype=np.float32)
    own = affinity[:, ranks.start : ranks.stop].astype(np.float32)
    return np.ascontiguousarray(own.reshape(len(own), num_targets, -1).sum(axis=2))


@compiled
def _route(known: NDArray[np.int64], table: NDArray[np.float32], filled: NDArray[np.int64], longest: int) -> int:
    """The target of a request with the token ids `known`; table: float32 [V, targets], filled: int64 [targets]."""
    pull = np.zeros(len(filled))
    for token_id in known:
        if 0 <= token_id < len(table):
            # Sums of float16 values are exact in float64, so that ties are ties in any order of tokens.
            for target in range(len(filled)):
                pull[target] += table[token_id, target]
    return strongest_pull(pull, filled, longest)
