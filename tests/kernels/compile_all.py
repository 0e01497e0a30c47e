"""Compile every kernel for three GPU generations, without a GPU, and print what the machine code holds, as JSON.

The host code runs too, up to the launch, which is left out.
"""

import json
import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class AbsentGpu:
    """What Triton's launcher asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        # Compiled kernels are kept by device.
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(capability: int) -> dict[str, list[str]]:
    """The global loads and stores of each kernel's PTX, by the kernel's name."""
    accesses: dict[str, list[str]] = {}
    launch = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        compiled = launch(self, *args, grid=grid, warmup=True, **kwargs)
        assert compiled.asm["cubin"]
        found = re.findall(r"(?:ld|st|red|atom)\.[\w.]*global[\w.:]*", compiled.asm["ptx"])
        accesses[self.fn.__name__] = sorted({*accesses.get(self.fn.__name__, []), *found})
        return compiled

    JITFunction.run = run
    triton.runtime.driver.set_active(AbsentGpu(capability))
    call_all()
    JITFunction.run = launch
    return accesses


def call_all() -> None:
    from specmoe.kernels.assign import fused, group_fused
    from specmoe.kernels.assign.choose_fused import choose_slots_op
    from specmoe.kernels.capacity.keep_best import mark_kept
    from specmoe.kernels.capacity.nominate import nominate_op
    from specmoe.kernels.combine.fused import combine_fused
    from specmoe.kernels.dispatch.fused import dispatch_fused, dispatch_scaled_fused

    def integers(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32)

    rows = torch.zeros((4, 7168), dtype=torch.bfloat16)
    dispatch_fused(rows, integers(4, 8), 32)
    dispatch_scaled_fused(rows.to(torch.float8_e4m3fn), torch.zeros((4, 56)), integers(4, 8), 32)
    combine_fused(rows, integers(4, 8), torch.zeros((4, 8)))
    tables = (integers(3), integers(2, 8), integers(2, 8), integers(8), integers(2))
    for fused.ONE_LAUNCH_PAIRS, choices in ((2048, ["cover"]), (0, ["static", "given"])):
        for choice in choices:
            fused.assign_op(torch.zeros((3, 2), dtype=torch.int64), torch.zeros((3, 2)), *tables, choice)
    choose_slots_op(integers(3, 2), *tables, "static")
    for group_fused.ONE_LAUNCH_PAIRS, group_fused.PROGRAM_PAIRS in ((2048, 1024), (0, 4)):
        group_fused.group_by_slot_op(integers(5, 2), 0, 8, 8)
    mark_kept(torch.zeros(9, dtype=torch.int64), integers(5), integers(4))
    flags = torch.ones((3, 2), dtype=torch.bool)
    nominate_op(flags, torch.zeros((3, 8)), integers(3, 4), torch.ones((2, 8), dtype=torch.bool), integers(3))


if __name__ == "__main__":
    print(json.dumps({capability: compile_all(capability) for capability in (80, 90, 100)}))  # noqa: T201
