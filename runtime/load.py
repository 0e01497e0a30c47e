"""Load a compiled checkpoint as the Hugging Face model that it was made from, its experts run by the plan."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specmoe.errors import SpecmoeError, UsageError
from specmoe.placement.reshard.manifest import PLAN_FILE
from specmoe.runtime.build_model import build_model
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.compiled_files import CompiledFiles
from specmoe.runtime.expert_runtime import runtime_of
from specmoe.runtime.workers import Workers, default_device, raise_together, require_equal, start_default_group

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    out: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    capacity: CapacityPolicy | None = None,
    verify_hashes: bool = True,
) -> "PreTrainedModel":
    """The model of the compiled checkpoint `out`, for inference; `model.specmoe` is its `ExpertRuntime`.

    It runs on the default process group (started here under torchrun if nobody has): one process holds all ranks, or
    any number of processes that divides `ep_size` share them. Collective, as is every forward pass after it; a
    failure of one process is raised on all. device: this process's accelerator, else the CPU. dtype: the checkpoint's.
    capacity: bounds each forward pass, and is lossy; None is lossless. verify_hashes: check the SHA-256 of every file
    that this process reads; without it only sizes, the plan's digest and the rank files' headers are checked. Raises
    `SpecmoeError` with one sentence for anything that does not fit.
    """
    if capacity is not None and not isinstance(capacity, CapacityPolicy):
        raise UsageError(f"capacity is {capacity!r}, a CapacityPolicy or None (lossless) was expected")
    start_default_group()
    error: SpecmoeError | None = None
    try:
        model = _load_own_part(Path(out), device, dtype, capacity, verify_hashes)
    except SpecmoeError as caught:
        error = caught
    raise_together(error)
    runtime = runtime_of(model)
    require_equal(
        {
            "plan": runtime.plan.digest,
            "dtype": str(model.dtype),
            "device type": runtime.workers.device.type,
            "capacity": "none" if capacity is None else capacity.summary,
        }
    )
    return model


def _load_own_part(
    out: Path,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    capacity: CapacityPolicy | None,
    verify_hashes: bool,
) -> "PreTrainedModel":
    files = CompiledFiles.open(out)
    workers = Workers.of_default_group(files.plan.ep_size, default_device() if device is None else torch.device(device))
    if workers.device.type == "cuda":
        # Kernels run on the current device, and collectives of objects send from it.
        torch.cuda.set_device(workers.device)
    rank_files = [files.manifest.rank_file(rank) for rank in workers.own_ranks]
    small_files = [PLAN_FILE, *(name for name in files.manifest.files if name.endswith(".json"))]
    files.check([*small_files, *files.manifest.shared_files, *rank_files], hashes=verify_hashes)
    return build_model(files, workers, dtype, capacity)
