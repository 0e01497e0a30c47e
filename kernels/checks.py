"""Check a kernel's tensor arguments on the host, without waiting for the device."""

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
    """Raise `UsageError` unless `low <= value < high` everywhere; only on the CPU, where looking costs no wait."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    smallest, largest = torch.aminmax(tensor)
    if smallest < low or largest >= high:
        raise UsageError(f"{name} has values from {smallest} to {largest}, {low} <= value < {high} was expected")
