"""Triton, with types, and one clear sentence where it is missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from specmoe.errors import UsageError

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as missing:
    raise UsageError(
        "tensors on a CUDA device need Triton, which is not installed; install triton, or move them to the CPU"
    ) from missing

__all__ = ["Kernel", "cache_folder", "ceil_div", "kernel", "median_ms", "power_of_two", "tl"]


class Kernel(Protocol):
    """A kernel: `kernel[grid](...)` launches it; another kernel calls it directly."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]: ...

    def __call__(self, *args: Any, **options: Any) -> Any: ...


def kernel(function: Callable[..., Any]) -> Kernel:
    """`triton.jit`, typed."""
    return cast(Kernel, triton.jit(function))


def cache_folder() -> Path:
    """Where Triton keeps compiled kernels."""
    return Path(triton.knobs.cache.dir)


def median_ms(work: Callable[[], object]) -> float:
    """The milliseconds that `work` takes on the current device, warm, its data not in the cache."""
    return float(triton.testing.do_bench(work, warmup=5, rep=20, return_mode="median"))


def ceil_div(amount: int, size: int) -> int:
    """How many blocks of `size` hold `amount`."""
    return -(-amount // size)


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least` and at least 1: blocks have such sizes."""
    return 1 << max(least - 1, 0).bit_length()
