"""Serve a list of prompts over all processes and hand the completions back in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from specmoe.errors import UsageError
from specmoe.runtime.expert_runtime import runtime_of
from specmoe.runtime.workers import gather

# Prompts of one length that run together: what they cache must fit into memory.
MAX_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One prompt's continuation; first_logits: float32 [V], the logits from which the first new token was chosen."""

    process: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    first_logits: torch.Tensor


def serve_prompts(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, max_batch: int = MAX_BATCH
) -> list[Completion]:
    """Continue every prompt greedily, each on the process that the plan's request rule gives it (`dp`) or on all
    of them together (`tp`); collective.

    All processes pass the same prompts and receive all completions, in the prompts' order. Prompts of equal length on
    a process run together, at most `max_batch` of them: nothing is padded. Raises `UsageError` for an empty prompt, and
    for `max_new_tokens` or `max_batch` below 1.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("max_batch", max_batch)):
        if value < 1:
            raise UsageError(f"{name} is {value}, at least 1 was expected")
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UsageError(f"prompt {number} has no tokens; at least one was expected")
    runtime = runtime_of(model)
    own = list(range(len(prompts)))
    if not runtime.shares_requests:
        processes = runtime.assign_requests(prompts)
        own = [number for number in own if processes[number] == runtime.workers.process]
    done: dict[int, Completion] = {}
    with runtime.lock_step(), torch.inference_mode():
        for numbers in _batches(own, prompts, max_batch):
            batch = [list(prompts[number]) for number in numbers]
            done |= zip(numbers, _complete(model, batch, max_new_tokens, runtime.workers.process), strict=True)
    everyone = {number: completion for part in gather(done) for number, completion in part.items()}
    return [everyone[number] for number in range(len(prompts))]


def _batches(own: Sequence[int], prompts: Sequence[Sequence[int]], max_batch: int) -> Iterator[list[int]]:
    """The numbers of prompts of one length, at most `max_batch` at a time, the shortest first."""
    by_length = sorted(own, key=lambda number: len(prompts[number]))
    for _, group in groupby(by_length, key=lambda number: len(prompts[number])):
        numbers = list(group)
        for start in range(0, len(numbers), max_batch):
            yield numbers[start : start + max_batch]


def _complete(model: Any, batch: list[list[int]], max_new_tokens: int, process: int) -> list[Completion]:
    """Continue prompts of one length."""
    input_ids = torch.tensor(batch, device=model.device)
    ends = _end_ids(model)
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=min(ends, default=0),
        output_logits=True,
        return_dict_in_generate=True,
    )
    new_ids = output.sequences[:, input_ids.shape[1] :].tolist()
    return [
        Completion(process=process, prompt_token_ids=prompt, token_ids=_until_end(tokens, ends), first_logits=logits)
        for prompt, tokens, logits in zip(batch, new_ids, output.logits[0].float().cpu(), strict=True)
    ]


def _end_ids(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """`tokens` up to the first end token, which is kept; what follows is padding."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens
