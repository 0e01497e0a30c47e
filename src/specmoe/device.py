"""Check the device that a caller names."""

from typing import TYPE_CHECKING

from specmoe.errors import UsageError

if TYPE_CHECKING:
    import torch


def usable_device(device: "str | torch.device") -> "torch.device":
    """`device`, after placing a number on it; raises `UsageError` for one that does not exist or cannot be used."""
    import torch

    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        if "at start of device string" in reason:  # and a list of two dozen kinds
            reason = "cpu, cuda or cuda:N was expected"
        raise UsageError(f"the device {device} cannot be used here: {reason}") from error
