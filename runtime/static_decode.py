"""Decode with buffers of fixed size: what it takes, and how large the buffers are."""

import math
from dataclasses import dataclass

from specmoe.errors import UsageError
from specmoe.placement.plan import PlacementPlan
from specmoe.runtime.workers import Workers

# How many standard deviations above the expected number of rows a buffer holds; rows arrive much like a Poisson count.
SPREAD = 3.0


@dataclass(frozen=True, kw_only=True)
class StaticDecode:
    """Ask `load` for exchanges whose shapes do not depend on the routing: no counts are told beforehand.

    max_tokens: the most tokens that a process brings to such a step (under `tp` its share of the batch); a pass with
    more, such as a prefill, goes the exact way. rows_per_peer: how many rows a process can send to each other one;
    None: from the plan's predicted traffic. When more are needed anywhere, a flag travels with the buffers and all
    processes run that layer the exact way: the output is the same in every case.
    """

    max_tokens: int
    rows_per_peer: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_tokens", self.max_tokens), ("rows_per_peer", self.rows_per_peer)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, at least 1 was expected")

    @property
    def summary(self) -> str:
        """What must be the same on all processes, in words."""
        rows = "as the plan predicts" if self.rows_per_peer is None else f"{self.rows_per_peer} rows"
        return f"up to {self.max_tokens} tokens, {rows} for each other process"

    def buffer_rows(self, plan: PlacementPlan, workers: Workers) -> int:
        """The rows that each process can send to each other one in a layer; never more than there can be."""
        at_most = self.max_tokens * min(plan.top_k, workers.ranks_per_process)
        if self.rows_per_peer is not None:
            return min(self.rows_per_peer, at_most)
        copies = plan.predicted.get("profile", {}).get("remote_copies_per_token")
        if copies is None or plan.ep_size == 1:
            return at_most
        expected = self.max_tokens * float(copies) * workers.ranks_per_process / (plan.ep_size - 1)
        return min(math.ceil(expected + SPREAD * math.sqrt(expected)) + 1, at_most)
