"""One forward pass over a batch, and what the recorder keeps of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.errors import CheckpointError, UsageError
from specmoe.profiler.batches import Batch
from specmoe.profiler.experts_interface import PassRouting
from specmoe.profiler.pair_counts import id_dtype
from specmoe.profiler.recording_thread import RecordingThread
from specmoe.profiler.request_stream import Request


def check_vocabulary(batch: Batch, vocab_size: int) -> None:
    """Raise `CheckpointError` where the tokenizer gives ids that the model has no embedding for."""
    largest = int(batch.token_ids.max())
    if largest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer gives token {largest}, and the model has only {vocab_size} embeddings; "
            "they do not belong together"
        )


@contextmanager
def fitting_in_memory(device: torch.device, batch: Batch) -> Iterator[None]:
    """Around the passes over `batch`: no gradients, and `UsageError` where they do not fit the device's memory."""
    try:
        with torch.inference_mode():
            yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{device} ran out of memory with a batch of {batch.mask.size} tokens; lower batch_tokens"
        ) from error


def run_batch(model: torch.nn.Module, batch: Batch, device: torch.device) -> None:
    """Run `batch` through `model`, which takes its input on `device`."""
    arguments = {"input_ids": torch.from_numpy(batch.input_ids).to(device)}
    if not batch.mask.all():
        arguments["attention_mask"] = torch.from_numpy(batch.mask.astype(np.int64)).to(device)
    with fitting_in_memory(device, batch):
        model(**arguments, use_cache=False)


def record_batch(
    routing: PassRouting,
    rows: NDArray[np.int64],
    requests: Sequence[Request],
    recording: RecordingThread,
    num_logical_experts: int,
) -> None:
    """Take the tokens of `requests`, in this order at `rows` int64 [T] of the pass, and leave the padding.

    What is copied to the host is a byte or two per expert id, and the weights of those tokens that the sample wants.
    """
    device = routing.expert_ids.device
    expert_ids = routing.expert_ids.index_select(0, torch.from_numpy(rows).to(device))
    # An id that does not fit would wrap to a good one in the narrow type.
    if bool(((expert_ids < 0) | (expert_ids >= num_logical_experts)).any()):
        raise CheckpointError(
            f"the model routes tokens to expert {int(expert_ids.max())}, and its layers have {num_logical_experts}; "
            "experts without weights are not handled"
        )
    narrow = torch.uint8 if id_dtype(num_logical_experts) is np.uint8 else torch.uint16
    offered = recording.offered(requests)
    in_sample = np.repeat(offered, [len(request.token_ids) for request in requests])
    gate_weights = routing.gate_weights.index_select(0, torch.from_numpy(rows[in_sample]).to(device)).to(torch.float16)
    recording.add(requests, expert_ids.to(narrow).cpu().numpy(), gate_weights.cpu().numpy(), offered)
