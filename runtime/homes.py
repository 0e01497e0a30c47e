"""Homes under `dp` attention: a request's tokens are on this process, and on one of its ranks when it has several."""

from collections.abc import Sequence

import torch

from specmoe.errors import UsageError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.request_router import RequestRouter
from specmoe.runtime.token_places import TokenPlaces
from specmoe.runtime.workers import Workers


class BatchHomes:
    """Every row of a batch is a request and has one home rank, from its first forward pass to its last.

    A batch that starts (nothing cached yet) is spread over the process's ranks by the plan's rule for requests, unless
    `pin` said where its rows go. Any choice gives the same output; a good one sends fewer rows.
    """

    def __init__(self, plan: PlacementPlan, workers: Workers) -> None:
        self._ranks = workers.own_ranks
        self._device = workers.device
        self._router = RequestRouter(plan, ranks=self._ranks) if len(self._ranks) > 1 else None
        self._pinned: torch.Tensor | None = None
        self._of_request = self._tensor([self._ranks.start])
        self._tokens = TokenPlaces()

    def pin(self, ranks: Sequence[int] | None) -> None:
        """Use these home ranks, one per batch row, for the batches to come; None goes back to the plan's rule."""
        strangers = sorted(set(ranks or []) - set(self._ranks))
        if strangers:
            raise UsageError(f"rank {strangers[0]} is not on this process, which has {list(self._ranks)}")
        self._pinned = None if ranks is None else self._tensor(ranks)

    def begin_forward(
        self,
        input_ids: torch.Tensor | None,
        num_requests: int,
        *,
        is_start: bool,
        is_token: torch.Tensor | None = None,
    ) -> None:
        """Note the batch that runs next; input_ids: int64 [B, S] or None, B = num_requests; is_token: bool [B, S],
        None where nothing is padding."""
        self._tokens.begin_forward(is_token)
        if self._router is None and self._pinned is None:
            return
        if self._pinned is not None and len(self._pinned) == num_requests:
            self._of_request = self._pinned
        elif self._router is not None and (is_start or len(self._of_request) != num_requests):
            self._router.reset()
            self._of_request = self._tensor(
                [self._router.route(row) for row in _prompts(input_ids, is_token, num_requests)]
            )

    @property
    def tokens(self) -> TokenPlaces:
        """Which rows of a MoE layer's input are tokens."""
        return self._tokens

    def of_tokens(self, _row: int, num_rows: int) -> torch.Tensor:
        """int32 [T]: the home rank of each token among the `num_rows` rows of a layer, which are in batch order."""
        num_requests = len(self._of_request)
        if num_requests == 0 or num_rows % num_requests != 0:
            # An experts layer called by itself: one request.
            return self._tensor([self._ranks.start]).expand(num_rows).contiguous()
        return self._tokens.only(self._of_request.repeat_interleave(num_rows // num_requests))

    def own_of(self, values: torch.Tensor) -> torch.Tensor:
        """[T]: the values of this process's tokens, of values given for every position of the batch."""
        return self._tokens.only(values)

    def _tensor(self, ranks: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(ranks), dtype=torch.int32, device=self._device)


def _prompts(input_ids: torch.Tensor | None, is_token: torch.Tensor | None, num_requests: int) -> list[list[int]]:
    """The token ids of each row, as far as they are known."""
    if input_ids is None:
        return [[]] * num_requests
    if is_token is None:
        return input_ids.tolist()
    return [row[kept].tolist() for row, kept in zip(input_ids, is_token, strict=True)]
