"""Check a kernel's tensor arguments on the host, without waiting for the device."""

import sys
from collections.abc import Sequence

import torch

from specmoe.errors import UsageError


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


def check_values(name: str, tensor: torch.Tensor, low: int, high: int) -> None:
    """Raise `UsageError` unless `low <= value < high` everywhere, on the CPU, where looking costs no wait.

    On a GPU the kernels leave out what is out of range; in Python's development mode (`python -X dev`) the device
    checks too, and fails with `name` without having been waited for.
    """
    if tensor.numel() == 0:
        return
    if tensor.device.type != "cpu":
        if sys.flags.dev_mode:
            message = f"{name} has values outside {low} <= value < {high}"
            torch._assert_async(((tensor >= low) & (tensor < high)).all(), message)
        return
    smallest, largest = torch.aminmax(tensor)
    if smallest < low or largest >= high:
        raise UsageError(f"{name} has values from {smallest} to {largest}, {low} <= value < {high} was expected")
