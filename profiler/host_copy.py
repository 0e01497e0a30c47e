"""Move arrays to a device and tensors back to the host without making the caller wait for the device.

A copy from ordinary memory stops the host until the device has caught up, and then the device until the host has
launched again. From and to pinned memory it stops neither; results come over a stream of their own, beside the next
pass, and an event says when they are there.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from specmoe.artifact import Array


class Arrival(Protocol):
    """What says that a copy is complete: an event of the device's."""

    def synchronize(self) -> object:
        """Return once it is."""


@dataclass(frozen=True, kw_only=True)
class HostCopy:
    """Tensors on the host whose values are there once `arrived` says so; None: they are there already."""

    tensors: tuple[torch.Tensor, ...]
    arrived: Arrival | None

    def wait(self) -> tuple[Array, ...]:
        """The arrays, complete; to be called by a thread that has nothing to launch."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return tuple(tensor.numpy() for tensor in self.tensors)


def to_device(array: Array, device: torch.device) -> torch.Tensor:
    """`array` on `device`, in the order of its current stream."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def copy_to_host(*tensors: torch.Tensor) -> HostCopy:
    """Start to copy `tensors`, all on one device; returns at once where that is a GPU."""
    device = tensors[0].device
    if device.type != "cuda":
        return HostCopy(tensors=tuple(tensor.cpu() for tensor in tensors), arrived=None)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    copies = []
    with torch.cuda.stream(stream):
        for tensor in tensors:
            copies.append(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True))
            copies[-1].copy_(tensor, non_blocking=True)
            # Its memory must not be given to the next pass while it is being read here.
            tensor.record_stream(stream)
        # Blocking: who waits for it sleeps, and leaves the processor to who launches.
        arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        arrived.record(stream)
    return HostCopy(tensors=tuple(copies), arrived=arrived)
