"""Check a kernel's tensor arguments on the host, without waiting for the device."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.errors import UsageError

# The types that weights, and rows to be added up, may have.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_device_values_checked: ContextVar[bool] = ContextVar("device_values_checked", default=sys.flags.dev_mode)


@contextmanager
def checking_device_values() -> Iterator[None]:
    """Inside it, values of tensors on a GPU are checked too, as they are all the time with `python -X dev`.

    The device looks at them in its turn and is not waited for; what is out of range makes the next call that waits
    for it, and all later ones, raise CUDA's "device-side assert", with the argument's name on stderr.
    """
    token = _device_values_checked.set(True)
    try:
        yield
    finally:
        _device_values_checked.reset(token)


def check_argument(
    name: str, tensor: torch.Tensor, dtypes: Sequence[torch.dtype], shape: Sequence[int], device: torch.device
) -> None:
    """Raise `UsageError` unless `tensor` has one of `dtypes`, exactly `shape` (-1 fits any size), lies on `device`
    and is contiguous."""
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(dtype) for dtype in dtypes)
        raise UsageError(f"{name} is {tensor.dtype}, {expected} was expected")
    fits = tensor.dim() == len(shape) and all(w in (-1, g) for w, g in zip(shape, tensor.shape, strict=True))
    if not fits:
        raise UsageError(f"{name} has shape {list(tensor.shape)}, {list(shape)} was expected")
    if tensor.device != device:
        raise UsageError(f"{name} is on {tensor.device}, {device} was expected")
    if not tensor.is_contiguous():
        raise UsageError(f"{name} is not contiguous; pass {name}.contiguous()")


def check_values(name: str, tensor: torch.Tensor, low: int, high: int, *, or_none: bool = False) -> None:
    """Raise `UsageError` unless `low <= value < high` everywhere, on the CPU, where looking costs no wait; with
    `or_none` -1 is fine too.

    On a GPU the kernels leave out what is out of range, unless `checking_device_values`.
    """
    if tensor.numel() == 0:
        return
    expected = f"{low} <= value < {high}{' or -1' if or_none else ''}"
    if tensor.device.type != "cpu":
        # Compiled code is not checked: a check would be part of it for good.
        if not torch.compiler.is_compiling() and _device_values_checked.get():
            fits = (tensor >= low) & (tensor < high)
            fits = fits | (tensor == -1) if or_none else fits
            torch._assert_async(fits.all(), f"{name} has values outside {expected}")
        return
    if not _all_within(tensor.flatten().numpy(), low, high, or_none):
        values = tensor[tensor != -1] if or_none else tensor
        smallest, largest = torch.aminmax(values)
        raise UsageError(f"{name} has values from {smallest} to {largest}, {expected} was expected")


@compiled
def _all_within(values: NDArray[np.integer], low: int, high: int, or_none: bool) -> bool:
    """Whether `low <= value < high`, or with `or_none` -1, for all values; values: [n]."""
    outside = 0
    for value in values:
        outside += not (low <= value < high or (or_none and value == -1))
    return outside == 0
