"""Serve a list of prompts over all processes and hand the completions back in order."""

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from specmoe.errors import UsageError
from specmoe.runtime.expert_runtime import ExpertRuntime, runtime_of
from specmoe.runtime.greedy_settings import end_ids, greedy_arguments, greedy_settings
from specmoe.runtime.request_cache import has_rows_of_tokens
from specmoe.runtime.running_batch import Request, RunningBatch
from specmoe.runtime.workers import gather

# Requests that a process runs at once: what they cache must fit into memory.
MAX_BATCH = 64
# Positions of a pass that reads prompts, padding included; a longer prompt is read by itself.
MAX_READ_TOKENS = 4096
# Waiting prompts join when this part of the batch is free: each time costs a pass in which the others wait.
JOINING_PART = 1 / 8

# How many of this process's prompts are completed, and how many it has.
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One prompt's continuation; first_logits: float32 [V], the logits from which the first new token was chosen."""

    process: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    first_logits: torch.Tensor


def serve_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    max_batch: int = MAX_BATCH,
    on_progress: OnProgress = lambda _done, _own: None,
) -> list[Completion]:
    """Continue every prompt greedily, each on the process that the plan's request rule gives it (`dp`) or on all
    of them together (`tp`); collective.

    All processes pass the same prompts and receive all completions, in the prompts' order. At most `max_batch` prompts
    of a process run together, whatever their lengths: the longest first, and others join as these end, so that at most
    `max_batch` times the longest request is cached. Raises `UsageError` for an empty prompt, and for `max_new_tokens`
    or `max_batch` below 1.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("max_batch", max_batch)):
        if value < 1:
            raise UsageError(f"{name} is {value}, at least 1 was expected")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UsageError(f"prompt {number} has no tokens; at least one was expected")
    runtime = runtime_of(model)
    done: dict[int, Completion] = {}
    with runtime.lock_step(), torch.inference_mode():
        requests = _own_requests(model, runtime, prompts, max_new_tokens)
        on_progress(0, len(requests))
        for request in _complete(model, runtime, requests, max_new_tokens, max_batch):
            done[request.number] = Completion(
                process=runtime.workers.process,
                prompt_token_ids=request.prompt,
                token_ids=request.new,
                first_logits=request.first_logits,
            )
            on_progress(len(done), len(requests))
    everyone = {number: completion for part in gather(done) for number, completion in part.items()}
    return [everyone[number] for number in range(len(prompts))]


def _own_requests(
    model: Any, runtime: ExpertRuntime, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> list[Request]:
    """What this process has to serve, the longest first."""
    ranks = runtime.home_ranks(prompts) if runtime.has_request_homes else [None] * len(prompts)
    own = [number for number, rank in enumerate(ranks) if rank is None or rank in runtime.workers.own_ranks]
    own.sort(key=lambda number: -len(prompts[number]))
    requests: list[Request] = []
    for number in own:
        prompt = list(prompts[number])
        # Without processors nothing in them depends on the prompt.
        is_shared = bool(requests) and not requests[0].settings.processors
        settings = requests[0].settings if is_shared else greedy_settings(model, prompt, max_new_tokens)
        requests.append(Request(number=number, prompt=prompt, rank=ranks[number], settings=settings))
    return requests


def _complete(
    model: Any, runtime: ExpertRuntime, requests: Sequence[Request], max_new_tokens: int, max_batch: int
) -> Iterator[Request]:
    """Every request, as soon as it has all its tokens."""
    if not requests:
        return
    takes_positions = "position_ids" in inspect.signature(model.forward).parameters
    if takes_positions and has_rows_of_tokens(requests[0].settings.cache):
        batch = RunningBatch(model, runtime, requests[0].settings.cache)
        yield from _complete_together(batch, requests, max_new_tokens, max_batch, end_ids(model))
    else:
        yield from _complete_by_length(model, requests, max_new_tokens, max_batch)
    if runtime.has_request_homes:
        runtime.pin_requests(None)


def _complete_together(
    batch: RunningBatch, requests: Sequence[Request], max_new_tokens: int, max_batch: int, ends: set[int]
) -> Iterator[Request]:
    waiting = deque(requests)
    while waiting or batch:
        free = max_batch - len(batch)
        if waiting and free >= min(len(waiting), math.ceil(JOINING_PART * max_batch)):
            batch.join(_next_to_read(waiting, free))
        else:
            batch.step()
        yield from batch.release(max_new_tokens, ends)


def _next_to_read(waiting: deque[Request], at_most: int) -> list[Request]:
    """Take from the front of `waiting`, whose first is the longest, what one pass reads."""
    fitting = max(MAX_READ_TOKENS // len(waiting[0].prompt), 1)
    return [waiting.popleft() for _ in range(min(fitting, at_most, len(waiting)))]


def _complete_by_length(
    model: Any, requests: Sequence[Request], max_new_tokens: int, max_batch: int
) -> Iterator[Request]:
    """Prompts of one length together, by transformers' own `generate`: where what a model caches is not by token
    (a recurrent state), padding and the requests of others would have to be kept out of it."""
    ends = end_ids(model)
    for _, group in groupby(requests, key=lambda request: len(request.prompt)):
        of_length = list(group)
        for start in range(0, len(of_length), max_batch):
            batch = of_length[start : start + max_batch]
            input_ids = torch.tensor([request.prompt for request in batch], device=model.device)
            output = model.generate(
                input_ids,
                attention_mask=torch.ones_like(input_ids),
                output_logits=True,
                return_dict_in_generate=True,
                **greedy_arguments(model, max_new_tokens),
            )
            rows = output.sequences[:, input_ids.shape[1] :].tolist()
            for request, tokens, logits in zip(batch, rows, output.logits[0].float().cpu(), strict=True):
                request.new, request.first_logits = _until_end(tokens, ends), logits
                yield request


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """`tokens` up to the first end token, which is kept; what follows is padding."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
