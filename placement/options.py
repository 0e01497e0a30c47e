"""What a placement method is asked for, and what it says while it works."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self, get_args

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import UsageError
from specmoe.placement.plan import Attention, ReplicaChoice

# Random generators take 32 bits, and the searches count up from the seed.
_SEEDS = 1 << 31


@dataclass(frozen=True, kw_only=True)
class SolveProgress:
    """`done` of `total` steps of `stage`; objective: the plan's so far, on the profile, where there is one; gap: how
    far above the proven bound that is, as a share of the bound.
    """

    stage: str
    done: int
    total: int
    objective: float | None = None
    gap: float | None = None


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """The options of every method; a method ignores what it has no use for.

    extra_slots: replica slots per rank on top of those that the experts need. max_imbalance: the heaviest rank's load
    over the mean, at least 1. time_limit: seconds, None for the method's own. replica_choice: None for the better one.
    group_limited: only permutations that keep the router's expert groups; expert_groups: how many equal groups of
    consecutive experts the router has, None where it has none or where that is unknown. best_effort: the best
    reachable plan where the cap cannot be kept, in place of an error. robust: least copies on the worst of the
    profile's domains, in place of all tokens together. workers: threads that solve layers side by side.
    on_progress: called now and then, from any of those threads. should_stop: asked now and then; once it says yes, the
    best plan so far is finished and returned. ends_at: by `time.monotonic()`, where there is a time limit.
    bound_seconds: one core's work on a lower bound, counted in operations; 0 for none. nearest: int32 [V], for each
    id the token whose table row stands in where the profile has hardly seen it, None where embeddings are not at hand.
    expert_loads: float64 [L, E], the pairs of each expert that load caps are on, None for those of the sample.
    """

    attention: Attention = "dp"
    extra_slots: int = 0
    max_imbalance: float = 1.05
    seed: int = 0
    time_limit: float | None = None
    replica_choice: ReplicaChoice | None = None
    group_limited: bool = False
    expert_groups: int | None = None
    best_effort: bool = False
    robust: bool = False
    workers: int = 2
    on_progress: Callable[[SolveProgress], None] | None = None
    should_stop: Callable[[], bool] | None = None
    ends_at: float | None = None
    bound_seconds: float = 10.0
    nearest: NDArray[np.int32] | None = None
    expert_loads: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.attention not in get_args(Attention):
            raise UsageError(f"attention is {self.attention!r}, 'dp' or 'tp' was expected")
        if self.replica_choice not in (None, *get_args(ReplicaChoice)):
            raise UsageError(f"replica_choice is {self.replica_choice!r}, 'static' or 'cover' was expected")
        if self.extra_slots < 0:
            raise UsageError(f"extra_slots is {self.extra_slots}, at least 0 was expected")
        if not 1 <= self.max_imbalance < math.inf:
            raise UsageError(f"max_imbalance is {self.max_imbalance}, a finite number of at least 1 was expected")
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise UsageError(f"time_limit is {self.time_limit}, a positive number of seconds was expected")
        if not 0 <= self.bound_seconds < math.inf:
            raise UsageError(f"bound_seconds is {self.bound_seconds}, a number of seconds, or 0, was expected")
        if not 0 <= self.seed < _SEEDS:
            raise UsageError(f"seed is {self.seed}, 0 to {_SEEDS - 1} was expected")
        if self.expert_groups is not None and self.expert_groups < 1:
            raise UsageError(f"expert_groups is {self.expert_groups}, at least 1 was expected")
        if self.workers < 1:
            raise UsageError(f"workers is {self.workers}, at least 1 was expected")

    @property
    def is_over(self) -> bool:
        """Whether the search should end with what it has."""
        return self.should_stop is not None and self.should_stop()

    @property
    def seconds_left(self) -> float | None:
        """Until the time limit, at least 0; None without one."""
        return None if self.ends_at is None else max(0.0, self.ends_at - time.monotonic())

    def ending_after(self, share: float) -> Self:
        """The options of a step that may take `share` of the time left; the same without a time limit."""
        if self.seconds_left is None:
            return self
        end = time.monotonic() + share * self.seconds_left
        return replace(self, ends_at=end, should_stop=lambda: time.monotonic() >= end or self.is_over)

    def report(
        self, stage: str, done: int, total: int, objective: float | None = None, gap: float | None = None
    ) -> None:
        """Tell the caller how far the work is, where it wants to know."""
        if self.on_progress is not None:
            self.on_progress(SolveProgress(stage=stage, done=done, total=total, objective=objective, gap=gap))
