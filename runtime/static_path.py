"""The static way through the MoE layers: fixed buffers, and one flag by which all processes turn to the exact way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from specmoe.errors import UsageError
from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.combine.combine import combine
from specmoe.kernels.dispatch.dispatch import dispatch
from specmoe.placement.plan import PlacementPlan
from specmoe.runtime.announcement import require_same_layer
from specmoe.runtime.exchange import ReceivedRows
from specmoe.runtime.fixed_exchange import FixedExchange
from specmoe.runtime.static_decode import StaticDecode
from specmoe.runtime.workers import Workers

# Of the rows that a process received, each row's sum over the experts here; and at most how many pairs they have.
PartialSums = Callable[[ReceivedRows, int], torch.Tensor]
# What a layer's static attempt came to, where it gave no output.
NotRun = Literal["exact", "idle"]


class StaticPath:
    """One for all layers of a model; layers_run and layers_fell_back count this process's attempts."""

    def __init__(self, settings: StaticDecode, plan: PlacementPlan, workers: Workers) -> None:
        self._settings = settings
        self._workers = workers
        self._fixed = FixedExchange(workers, settings.buffer_rows(plan, workers)) if workers.world_size > 1 else None
        self._is_deferred = False
        self._overflowed = torch.zeros((), dtype=torch.bool, device=workers.device)
        self.layers_run = 0
        self.layers_fell_back = 0

    @property
    def rows_per_peer(self) -> int:
        """The rows that a process can send to each other one; 0 where there is no other."""
        return 0 if self._fixed is None else self._fixed.rows_per_peer

    @property
    def is_deferred(self) -> bool:
        """Whether a step inside `deferring_overflow` runs."""
        return self._is_deferred

    @contextmanager
    def deferring_overflow(self) -> Iterator[torch.Tensor]:
        """Inside it nothing is read on the host, so that a step can be captured in a CUDA graph.

        All processes enter it together, for steps of requests that have begun. Yields a flag on the device (bool, no
        dimensions): where it is true after a step, that step's output is wrong on every process, and all repeat it
        outside, which also tells who is out of step. It stays true until it is zeroed, as before the replay of a
        captured step. On CUDA in bfloat16 alone: products of other types are sized on the host.
        """
        self._overflowed.zero_()
        self._is_deferred = True
        try:
            yield self._overflowed
        finally:
            self._is_deferred = False

    def run(
        self, hidden: torch.Tensor, assignment: Assignment, row: int, partial_sums: PartialSums, *, active: bool
    ) -> torch.Tensor | NotRun:
        """[T, H], the layer's output; or "exact" when all processes must go the exact way, or "idle" when none is
        active; collective. hidden: [T, H]."""
        fits = hidden.shape[0] <= self._settings.max_tokens
        if self._is_deferred and not fits:
            raise UsageError(f"{hidden.shape[0]} tokens are more than the {self._settings.max_tokens} of a static step")
        if self._is_deferred and hidden.is_cuda and hidden.dtype != torch.bfloat16:
            raise UsageError(
                f"a step without waiting for the GPU runs in bfloat16; the model computes in {hidden.dtype}"
            )
        if self._fixed is None:
            return self._alone(hidden, assignment, partial_sums) if fits else "exact"
        return self._together(self._fixed, hidden, assignment, row, partial_sums, active=active, fits=fits)

    def _alone(self, hidden: torch.Tensor, assignment: Assignment, partial_sums: PartialSums) -> torch.Tensor:
        """One process holds all ranks: as many rows as there can be, most of them empty."""
        slots, weights = assignment.row_slots, assignment.row_weights
        rows = dispatch(hidden, assignment.token_rows, slots.shape[0])
        self.layers_run += 1
        partial = partial_sums(ReceivedRows(hidden=rows, slots=slots, weights=weights), assignment.pair_slot.numel())
        return combine(partial, assignment.token_rows, None)

    def _together(
        self,
        fixed: FixedExchange,
        hidden: torch.Tensor,
        assignment: Assignment,
        row: int,
        partial_sums: PartialSums,
        *,
        active: bool,
        fits: bool,
    ) -> torch.Tensor | NotRun:
        top_k = assignment.pair_slot.shape[1]
        places = fixed.places(assignment) if fits else fixed.no_places(top_k)
        status = torch.full((3,), row, dtype=torch.int32, device=hidden.device)
        status[1] = int(active)
        status[2] = places.overflow if fits else 1
        sent = fixed.send(hidden if fits else hidden[:0], places, status, row)
        statuses = torch.cat([status[None], sent.statuses])
        if self._is_deferred:
            self._overflowed |= ((statuses[:, 2] != 0) | (statuses[:, 0] != row)).any()
        elif answer := self._answer(statuses, row):
            return answer
        self.layers_run += 1
        num_pairs = (places.row_slots.shape[0] - assignment.row_slots.shape[0] + hidden.shape[0]) * top_k
        partial = partial_sums(sent.received, num_pairs)
        return combine(fixed.send_back(partial, row), places.token_places, None)

    def _answer(self, statuses: torch.Tensor, row: int) -> NotRun | None:
        """What all processes' headers say, this one's first; the one place where the host waits for the device."""
        heard = statuses.tolist()
        others = [process for process in range(self._workers.world_size) if process != self._workers.process]
        require_same_layer(zip(others, (their_row for their_row, _, _ in heard[1:]), strict=True), self._workers, row)
        if any(needs_exact for _, _, needs_exact in heard):
            self.layers_fell_back += 1
            return "exact"
        return None if any(is_active for _, is_active, _ in heard) else "idle"
