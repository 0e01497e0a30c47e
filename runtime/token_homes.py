"""Homes under `tp` attention: every layer deals the batch out to the ranks in equal slices, by the token table."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from specmoe.placement.plan import PlacementPlan
from specmoe.runtime.errors import ExchangeError, others_answer
from specmoe.runtime.token_places import TokenPlaces
from specmoe.runtime.token_seats import NO_RANK, seat_tokens, slice_sizes
from specmoe.runtime.workers import Workers


@dataclass(frozen=True, kw_only=True)
class TokenSlices:
    """How one layer's batch of T tokens is split over W processes.

    order: int64 [T], the tokens by process, then place in the batch; sizes: how many each process has; own: int64 [n],
    this process's tokens; homes: int32 [n], their home ranks.
    """

    order: torch.Tensor
    sizes: list[int]
    own: torch.Tensor
    homes: torch.Tensor


class TokenHomes:
    """Every process runs the same batch; its tokens have their homes anew at each MoE layer."""

    def __init__(self, plan: PlacementPlan, workers: Workers) -> None:
        self._plan = plan
        self._workers = workers
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None
        if plan.token_to_rank is not None and plan.token_confidence is not None:
            table = torch.tensor(plan.token_to_rank, device=workers.device).long()
            self._tables = table, torch.tensor(plan.token_confidence, device=workers.device)
        self._token_ids: torch.Tensor | None = None
        self._slices: TokenSlices | None = None
        self._batch = TokenPlaces()

    def begin_forward(
        self,
        input_ids: torch.Tensor | None,
        num_requests: int,
        *,
        is_start: bool,
        is_token: torch.Tensor | None = None,
    ) -> None:
        """Note the batch that runs next; is_token: bool [B, S], None where nothing is padding. Collective: raises
        `ExchangeError` unless all processes run the same."""
        self._slices = None
        self._batch.begin_forward(is_token)
        self._token_ids = None if input_ids is None else self._batch.only(input_ids.flatten())
        if self._workers.world_size > 1:
            self._require_same_batch(num_requests, is_start)

    def seats(self, row: int | None, num_tokens: int) -> torch.Tensor:
        """int32 [T]: the home rank of every token of the batch at the plan's row `row` (None: a dense layer)."""
        wanted = torch.full((num_tokens,), NO_RANK, device=self._workers.device)
        confidence = torch.zeros(num_tokens, device=self._workers.device)
        ids = self._token_ids
        if self._tables is not None and row is not None and ids is not None and len(ids) == num_tokens:
            ranks, confidences = self._tables
            in_table = (ids >= 0) & (ids < ranks.shape[1])
            column = torch.where(in_table, ids, 0)
            wanted = torch.where(in_table, ranks[row, column], NO_RANK)
            confidence = confidences[row, column]
        return seat_tokens(wanted, confidence, self._plan.ep_size).to(torch.int32)

    def split(self, row: int | None, num_tokens: int) -> TokenSlices:
        """The slices at row `row` of a batch; `of_tokens` then answers for this process's."""
        homes = self.seats(row, num_tokens)
        per_process = self._workers.ranks_per_process
        sizes = slice_sizes(num_tokens, self._plan.ep_size)
        by_process = [sum(sizes[first : first + per_process]) for first in range(0, len(sizes), per_process)]
        order = torch.argsort(homes // per_process, stable=True)
        start = sum(by_process[: self._workers.process])
        own = order[start : start + by_process[self._workers.process]]
        self._slices = TokenSlices(order=order, sizes=by_process, own=own, homes=homes[own])
        return self._slices

    @property
    def batch(self) -> TokenPlaces:
        """Which positions of the batch are tokens: those that are dealt out."""
        return self._batch

    @property
    def tokens(self) -> TokenPlaces:
        """Which rows of a MoE layer's input are tokens: all, once they are dealt out."""
        return self._batch if self._slices is None else TokenPlaces()

    def of_tokens(self, row: int, num_rows: int) -> torch.Tensor:
        """int32 [n]: the home ranks of the tokens among the `num_rows` rows that this process brings to row `row`."""
        if self._slices is not None:
            return self._slices.homes
        places = self._batch.among(num_rows)
        return self.seats(row, num_rows if places is None else len(places))

    def own_of(self, values: torch.Tensor) -> torch.Tensor:
        """[n]: the values of the tokens that this process brings to the layer, of values given for every position of
        the batch."""
        of_tokens = self._batch.only(values)
        return of_tokens if self._slices is None else of_tokens[self._slices.own]

    def _require_same_batch(self, num_requests: int, is_start: bool) -> None:
        ids = self._token_ids
        content = [0, 0] if ids is None else [len(ids), int((ids * torch.arange(1, len(ids) + 1).to(ids)).sum())]
        own = torch.tensor([num_requests, int(is_start), *content], device=self._workers.device)
        everyone = [torch.empty_like(own) for _ in range(self._workers.world_size)]
        with others_answer(self._workers.process, "the comparison of batches"):
            dist.all_gather(everyone, own)
        for process, theirs in enumerate(everyone):
            if not torch.equal(theirs, everyone[0]):
                raise ExchangeError(
                    f"process {process} runs another batch than process 0; under tp attention all processes must be "
                    "given the same tokens"
                )
