"""One forward pass over a batch, and what the recorder keeps of it."""

from typing import Any

import numpy as np
import torch

from specmoe.errors import CheckpointError, UsageError
from specmoe.profiler.batches import Batch
from specmoe.profiler.experts_interface import PassRouting
from specmoe.profiler.pair_counts import id_dtype
from specmoe.profiler.routing_recorder import RoutingRecorder


def check_vocabulary(batch: Batch, vocab_size: int) -> None:
    """Raise `CheckpointError` where the tokenizer gives ids that the model has no embedding for."""
    largest = int(batch.token_ids.max())
    if largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer gives token {largest}, and the model has only {vocab_size} embeddings; "
            "they do not belong together"
        )


def run_batch(model: Any, batch: Batch) -> None:
    """Run `batch` through `model`; raises `UsageError` where it does not fit the device's memory."""
    device = model.device
    arguments = {"input_ids": torch.from_numpy(batch.input_ids).to(device)}
    if not batch.mask.all():
        arguments["attention_mask"] = torch.from_numpy(batch.mask.astype(np.int64)).to(device)
    try:
        with torch.inference_mode():
            model(**arguments, use_cache=False)
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{device} ran out of memory with a batch of {batch.mask.size} tokens; lower batch_tokens"
        ) from error


def record_batch(routing: PassRouting, batch: Batch, recorder: RoutingRecorder, num_logical_experts: int) -> None:
    """Drop the padding, then copy to the host: a byte or two per expert id, and the weights only of sample tokens."""
    device = routing.expert_ids.device
    tokens = np.flatnonzero(batch.mask)
    expert_ids = routing.expert_ids.index_select(0, torch.from_numpy(tokens).to(device))
    # An id that does not fit would wrap to a good one in the narrow type.
    if bool(((expert_ids < 0) | (expert_ids >= num_logical_experts)).any()):
        raise CheckpointError(
            f"the model routes tokens to expert {int(expert_ids.max())}, and its layers have {num_logical_experts}; "
            "experts without weights are not handled"
        )
    narrow = torch.uint8 if id_dtype(num_logical_experts) is np.uint8 else torch.uint16
    wanted = torch.from_numpy(tokens[recorder.wanted(batch.requests)]).to(device)
    gate_weights = routing.gate_weights.index_select(0, wanted).to(torch.float16)
    recorder.add(batch.requests, expert_ids.to(narrow).cpu().numpy(), gate_weights.cpu().numpy())
