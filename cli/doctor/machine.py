"""The machine: processor, memory, GPUs, process-group backends, and where compiled code can be kept."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from specmoe.cli.doctor.finding import Finding

_GIB = 2**30


def machine_findings() -> Iterator[Finding]:
    """Everything that can be told without loading a model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = f"{platform.system()} on {platform.machine()}, Python {platform.python_version()}, {cores} cores"
    yield Finding(what="processor", status="usable", detail=processor, serves="solve, evaluate, reshard")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    yield Finding(what="memory", status="usable", detail=f"{memory:.1f} GiB", serves="profile and load on a CPU")
    yield _compiled_cache()
    try:
        import torch
    except ImportError:
        return
    yield from _devices()
    yield from _backends()
    yield Finding(
        what="PyTorch's threads",
        status="usable",
        detail=str(torch.get_num_threads()),
        serves="profile and load on a CPU",
    )


def _compiled_cache() -> Finding:
    """Whether numba can keep machine code: beside the package or in the user's cache folder."""
    import specmoe

    package = Path(specmoe.__file__).parent
    named = os.environ.get("NUMBA_CACHE_DIR")
    folder = Path(named) if named else package
    serves = "a quick start of solve and evaluate"
    if os.access(folder, os.W_OK) or os.access(Path.home(), os.W_OK):
        return Finding(what="cache of compiled code", status="usable", detail="can be written", serves=serves)
    detail = f"{folder} cannot be written: every process compiles anew; set NUMBA_CACHE_DIR"
    return Finding(what="cache of compiled code", status="absent", detail=detail, serves=serves)


def _devices() -> Iterator[Finding]:
    import torch

    serves = "profile, load"
    if not torch.cuda.is_available():
        yield Finding(what="GPU", status="absent", detail="PyTorch sees none", serves=serves)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        detail = (
            f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}"
        )
        yield Finding(what=f"GPU {index}", status="usable", detail=detail, serves=serves)


def _backends() -> Iterator[Finding]:
    from torch import distributed

    is_there = {
        "gloo": distributed.is_available() and distributed.is_gloo_available(),
        "nccl": distributed.is_available() and distributed.is_nccl_available(),
    }
    serves = {"gloo": "several processes on CPUs", "nccl": "several processes on GPUs"}
    for backend, there in is_there.items():
        detail = "in this build of PyTorch" if there else "not in this build of PyTorch"
        yield Finding(what=backend, status="usable" if there else "absent", detail=detail, serves=serves[backend])
