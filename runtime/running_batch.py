"""Requests that are decoded together though their lengths differ: they join and leave between forward passes.

Shape suffixes: B requests, S new positions, C cached positions, V vocabulary.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

from specmoe.runtime.expert_runtime import ExpertRuntime
from specmoe.runtime.greedy_settings import GreedySettings
from specmoe.runtime.request_cache import join_rows, keep_rows


@dataclass(kw_only=True)
class Request:
    """A prompt and what it was continued with so far. rank: its home, None where tokens have homes of their own."""

    number: int
    prompt: list[int]
    rank: int | None
    settings: GreedySettings
    new: list[int] = field(default_factory=list)
    first_logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.new)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token; logits: float32 [V]."""
        if self.settings.processors:
            ids = torch.tensor([[*self.prompt, *self.new]], device=logits.device)
            logits = self.settings.processors(ids, logits[None].clone())[0]
        return int(logits.argmax())


class RunningBatch:
    """What it caches is as wide as its longest request; all processes of `tp` have the same."""

    def __init__(self, model: Any, runtime: ExpertRuntime, empty_cache: Any) -> None:
        self._model = model
        self._runtime = runtime
        self._empty_cache = empty_cache
        self._cache: Any = None
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def join(self, requests: Sequence[Request]) -> None:
        """Read the prompts of `requests` in one pass, which gives each its first token, and decode them from now on."""
        cache = deepcopy(self._empty_cache)
        logits = self._forward(requests, [request.prompt for request in requests], cache)
        for request, first in zip(requests, logits, strict=True):
            request.first_logits = first.cpu()
        _append_tokens(requests, logits)
        self._requests += requests
        if self._cache is None:
            self._cache = cache
        else:
            join_rows(self._cache, cache)

    def step(self) -> None:
        """Give every request its next token."""
        logits = self._forward(self._requests, [request.new[-1:] for request in self._requests], self._cache)
        _append_tokens(self._requests, logits)

    def release(self, max_new_tokens: int, ends: set[int]) -> list[Request]:
        """Take out the requests that have all their tokens, and forget what was cached for them."""
        is_done = [len(request.new) == max_new_tokens or request.new[-1] in ends for request in self._requests]
        if not any(is_done):
            return []
        done = [request for request, ended in zip(self._requests, is_done, strict=True) if ended]
        stay = [place for place, ended in enumerate(is_done) if not ended]
        self._requests = [self._requests[place] for place in stay]
        if stay:
            # The newest token of each is not cached yet.
            num_cached = max(request.length for request in self._requests) - 1
            keep_rows(self._cache, torch.tensor(stay, device=self._model.device), num_cached)
        else:
            self._cache = None
        return done

    def _forward(self, requests: Sequence[Request], new_ids: Sequence[Sequence[int]], cache: Any) -> torch.Tensor:
        """float32 [B, V]: the logits after each request's last token; new_ids: its tokens that are not cached yet."""
        device, S = self._model.device, max(len(ids) for ids in new_ids)
        width = cache.get_seq_length() + S
        input_ids = torch.tensor([[0] * (S - len(ids)) + list(ids) for ids in new_ids], device=device)
        empty = width - torch.tensor([request.length for request in requests], device=device)
        column = torch.arange(width, device=device)
        if self._runtime.has_request_homes:
            self._runtime.pin_requests([request.rank for request in requests if request.rank is not None])
        output = self._model(
            input_ids=input_ids,
            attention_mask=(column >= empty[:, None]).long(),
            position_ids=(column[-S:] - empty[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            **requests[0].settings.arguments,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits


def _append_tokens(requests: Sequence[Request], logits: torch.Tensor) -> None:
    """Append to each request its next token; logits: float32 [B, V]."""
    if any(request.settings.processors for request in requests):
        chosen = [request.choose(row) for request, row in zip(requests, logits, strict=True)]
    else:
        # All at once: the device is waited for a single time.
        chosen = logits.argmax(dim=-1).tolist()
    for request, token in zip(requests, chosen, strict=True):
        request.new.append(token)
