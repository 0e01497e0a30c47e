"""Let the model continue a batch of prompts greedily, so that the routing of decode steps can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.pretrained import reading_with_transformers
from specmoe.profiler.batches import Batch
from specmoe.profiler.forward_pass import fitting_in_memory
from specmoe.profiler.host_copy import to_device
from specmoe.profiler.request_stream import Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """requests: the prompts with what was generated; num_rows: the rows of all passes, first the prompts' B * S, then
    B per step; rows: int64 [T], where the tokens of `requests`, one after the other, are among them.
    """

    requests: list[Request]
    num_rows: int
    rows: NDArray[np.int64]


def continue_batch(model: "PreTrainedModel", batch: Batch, num_tokens: int, device: torch.device) -> Continuation:
    """Run `batch` and up to `num_tokens` generated tokens of each request; one ends before its end-of-text token."""
    from transformers import GenerationConfig

    ends = _end_tokens(model)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        # One more, for the last token generated is never run through the model.
        max_new_tokens=num_tokens + 1,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    # Prompts end together, with the padding before them: what is generated follows.
    mask = batch.mask[:, : batch.lengths.max()][:, ::-1].copy()
    prompts = np.zeros(mask.shape, dtype=np.int64)
    prompts[mask] = batch.token_ids
    problem = f"transformers cannot generate with this {type(model).__name__}"
    with reading_with_transformers(problem), fitting_in_memory(device, batch):
        whole = model.generate(  # type: ignore[operator]
            input_ids=to_device(prompts, device),
            attention_mask=to_device(mask.astype(np.int64), device),
            generation_config=config,
        )
    # Each step's input: [B, steps].
    generated = whole[:, mask.shape[1] : -1].cpu().numpy().astype(np.int32)
    return _continuation(batch, generated, ends)


def _continuation(batch: Batch, generated: NDArray[np.int32], ends: Sequence[int]) -> Continuation:
    B, S = len(batch.requests), int(batch.lengths.max())
    steps = generated.shape[1]
    requests, rows = [], []
    for at, request in enumerate(batch.requests):
        ended = np.flatnonzero(np.isin(generated[at], ends))
        count = int(ended[0]) if len(ended) else steps
        length = len(request.token_ids)
        token_ids = np.concatenate([request.token_ids, generated[at, :count]])
        requests.append(replace(request, token_ids=token_ids, num_generated=count))
        rows += [(at + 1) * S - length + np.arange(length), B * S + at + B * np.arange(count)]
    return Continuation(requests=requests, num_rows=B * (S + steps), rows=np.concatenate(rows))


def _end_tokens(model: "PreTrainedModel") -> list[int]:
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    return [] if ends is None else [ends] if isinstance(ends, int) else [int(end) for end in ends]
