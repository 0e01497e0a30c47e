"""Register kernels' host functions as torch operators, so that `torch.compile` and CUDA graphs take them whole.

As `torch.library.custom_op` does, but called straight: in a decode step launched from Python the wrappers that it puts
around each call take longer than the kernel.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch

_NAMESPACE = "specmoe"
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


class Operator(Protocol):
    """A registered operator; `torch.library.opcheck` takes it."""

    def __call__(self, *args: Any) -> Any: ...


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Operator]:
    """Register the decorated function as `specmoe::name`, on CUDA, and on the CPU for Triton's interpreter.

    fake: what makes the outputs, of the right shapes and types and with any values, of tensors without data. The
    operators have no gradient: going backward through one is an error.
    """

    def register(function: Callable[..., Any]) -> Operator:
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))  # type: ignore[no-untyped-call]
        for key in ("CUDA", "CPU"):
            _LIBRARY.impl(name, function, key)  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_LIBRARY)

        def backward(*_: object) -> None:
            raise NotImplementedError(f"{_NAMESPACE}::{name} has no gradient; run the model without one")

        torch.library.register_autograd(f"{_NAMESPACE}::{name}", backward, lib=_LIBRARY)
        return cast(Operator, getattr(getattr(torch.ops, _NAMESPACE), name).default)

    return register
