"""Load a compiled checkpoint as the Hugging Face model that it was made from, its experts run by the plan."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specmoe.checkpoint import CONFIG_FILE
from specmoe.device import usable_device
from specmoe.errors import CheckpointError, UsageError
from specmoe.runtime.build_model import build_model
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.compiled_files import CompiledFiles
from specmoe.runtime.expert_runtime import runtime_of
from specmoe.runtime.static_decode import StaticDecode
from specmoe.runtime.stored_weights import require_known_quantization
from specmoe.runtime.workers import Workers, default_device, failing_together, require_equal, start_default_group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load(
    out: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    capacity: CapacityPolicy | None = None,
    decode: StaticDecode | None = None,
    verify_hashes: bool = True,
) -> "PreTrainedModel":
    """The model of the compiled checkpoint `out`, for inference; `model.specmoe` is its `ExpertRuntime`.

    It runs on the default process group (started here under torchrun if nobody has): one process holds all ranks, or
    any number of processes that divides `ep_size` share them. Collective, as is every forward pass after it; a
    failure of one process is raised on all. device: default this process's accelerator, else the CPU. dtype: a torch
    type or its name; default the checkpoint's. capacity: bounds each forward pass, and is lossy; None is lossless.
    decode: exchange buffers of fixed size in passes of few tokens, which is lossless too.
    verify_hashes: check the SHA-256 of every file that this process reads; without it only names, sizes, the plan's
    digest and the rank files' headers are checked. Raises `SpecmoeError` with one sentence for anything that does not
    fit, such as a file in `out` that the manifest does not list.
    """
    if capacity is not None and not isinstance(capacity, CapacityPolicy):
        raise UsageError(f"capacity is {capacity!r}, a CapacityPolicy or None (lossless) was expected")
    if decode is not None and not isinstance(decode, StaticDecode):
        raise UsageError(f"decode is {decode!r}, a StaticDecode or None (counts are exchanged first) was expected")
    start_default_group()
    with failing_together():
        # First of all: the processes' next meeting sends from the current device, where the group is NCCL's alone.
        own_device = _made_current(_own_device(device))
        files = CompiledFiles.open(Path(out))
        model = _load_own_part(files, own_device, dtype, capacity, decode, verify_hashes)
    runtime = runtime_of(model)
    require_equal(
        {
            "plan": runtime.plan.digest,
            "checkpoint": files.manifest.contents_digest,
            "dtype": str(model.dtype),
            "device type": runtime.workers.device.type,
            "capacity": "none" if capacity is None else capacity.summary,
            "decode": "exact" if decode is None else decode.summary,
        }
    )
    return model


def _load_own_part(
    files: CompiledFiles,
    device: torch.device,
    dtype: torch.dtype | str | None,
    capacity: CapacityPolicy | None,
    decode: StaticDecode | None,
    verify_hashes: bool,
) -> "PreTrainedModel":
    chosen_dtype = None if dtype is None else _checked_dtype(dtype)
    workers = Workers.of_default_group(files.plan.ep_size, device)
    # First what is small: the rest of a checkpoint that cannot be run need not be read.
    files.check([CONFIG_FILE], hashes=verify_hashes)
    require_known_quantization(files.quantization, str(files.folder))
    files.check(files.names_for(workers.own_ranks), hashes=verify_hashes)
    try:
        return build_model(files, workers, chosen_dtype, capacity, decode)
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"{files.folder}: the weights of {len(workers.own_ranks)} of {workers.ep_size} ranks do not fit on {device}"
            f" ({str(error).partition('. ')[0]}); start more processes, or load it in a smaller type"
        ) from error


def _made_current(device: torch.device) -> torch.device:
    """The device, on which kernels run from now on."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _own_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for; "cuda" without a number is, as without a wish, the one of this process."""
    wanted = default_device() if device is None else usable_device(device)
    return default_device() if wanted == torch.device("cuda") else wanted


def _checked_dtype(dtype: torch.dtype | str) -> torch.dtype | None:
    """The torch type; None for the checkpoint's own."""
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise UsageError(f"dtype is {dtype!r}, one of {', '.join(DTYPES)} was expected")
