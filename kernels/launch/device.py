"""Where a kernel is launched."""

from contextlib import AbstractContextManager, nullcontext

import torch


def device_of(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """While entered, kernels go to the device that holds `tensor`, on its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
