"""Compile a checkpoint: plan the layout, prove it complete, then move the bytes and put the folder in place."""

import os
from pathlib import Path

from specmoe.errors import OutputError, UsageError
from specmoe.model_folder import model_folder
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.build import total_bytes, write_compilation
from specmoe.placement.reshard.compilation import plan_compilation
from specmoe.placement.reshard.manifest import CompiledManifest, Layout
from specmoe.placement.reshard.progress import byte_progress
from specmoe.placement.reshard.staging import Staging, refuse_output

MAX_DEFAULT_JOBS = 4
# While one waits for the disk, another hashes.
_JOBS_PER_PROCESSOR = 2


def reshard(
    model: Path | str,
    plan: Path | str | PlacementPlan,
    out: Path | str,
    *,
    layout: Layout = "ranks",
    force: bool = False,
    progress: bool = False,
    jobs: int | None = None,
) -> CompiledManifest:
    """Compile the checkpoint `model` (a folder, or a name on the hub) by `plan` into the folder `out`.

    Returns its manifest. Bytes are moved, never cast, in bounded memory whatever the model's size. `out` appears whole
    or not at all; an interrupted run is taken up by the next one with the same arguments. `jobs` is how many files are
    written at once (default: two per processor, at most 4). Raises `CheckpointError`, `MismatchError`, `UsageError` or
    `OutputError`.
    """
    target = Path(os.path.realpath(out))
    refuse_output(target, force=force)
    source = model_folder(model)
    refuse_nesting(Path(os.path.realpath(source)), target)
    loaded = plan if isinstance(plan, PlacementPlan) else PlacementPlan.load(Path(plan))
    compilation = plan_compilation(source, loaded, layout)
    workers = _jobs(jobs)
    try:
        with (
            Staging(target, compilation.key, force=force) as staging,
            byte_progress("reshard", total_bytes(compilation), shown=progress) as report,
        ):
            manifest = write_compilation(compilation, staging, workers, report)
            staging.publish()
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    return manifest


def refuse_nesting(model: Path, out: Path) -> None:
    """Raise `OutputError` when the output would lie inside the source, or the source inside the output."""
    if out == model or out.is_relative_to(model) or model.is_relative_to(out):
        raise OutputError(f"cannot write {out}: the output and the checkpoint {model} must not contain each other")


def _jobs(jobs: int | None) -> int:
    if jobs is None:
        return min(MAX_DEFAULT_JOBS, _JOBS_PER_PROCESSOR * len(os.sched_getaffinity(0)))
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}, at least 1 was expected")
    return jobs
