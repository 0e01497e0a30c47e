"""One forward pass over a batch, and what the recorder keeps of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import CheckpointError, UsageError
from specmoe.profiler.batches import Batch
from specmoe.profiler.experts_interface import PassRouting
from specmoe.profiler.host_copy import HostCopy, copy_to_host, to_device
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
    arguments = {"input_ids": to_device(batch.input_ids, device)}
    if not batch.mask.all():
        arguments["attention_mask"] = to_device(batch.mask.astype(np.int64), device)
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
    Nothing here waits for the device: the recording thread does, and raises `CheckpointError` for an id out of range.
    """
    device = routing.expert_ids.device
    expert_ids = routing.expert_ids.index_select(0, to_device(rows, device))
    narrow = torch.uint8 if id_dtype(num_logical_experts) is np.uint8 else torch.uint16
    offered = recording.offered(requests)
    in_sample = np.repeat(offered, [len(request.token_ids) for request in requests])
    gate_weights = routing.gate_weights.index_select(0, to_device(rows[in_sample], device)).to(torch.float16)
    # An id that does not fit would wrap to a good one in the narrow type, hence the extremes before it.
    copy = copy_to_host(torch.stack(torch.aminmax(expert_ids)), expert_ids.to(narrow), gate_weights)
    recording.add(requests, partial(_arrived, copy, num_logical_experts), offered)


def _arrived(copy: HostCopy, num_logical_experts: int) -> tuple[Array, Array]:
    """Expert ids and gate weights once they are on the host."""
    extremes, expert_ids, gate_weights = copy.wait()
    if extremes[0] < 0 or extremes[1] >= num_logical_experts:
        raise CheckpointError(
            f"the model routes tokens to expert {extremes[1]}, and its layers have {num_logical_experts}; "
            "experts without weights are not handled"
        )
    return expert_ids, gate_weights
