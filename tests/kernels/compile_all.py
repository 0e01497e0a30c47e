"""Compile every kernel for three GPU generations, without a GPU, and print what the machine code holds, as JSON.

The host code runs too, up to the launch, which is left out. Rows are of 7168 bfloat16 values. For sm_90 the rest is of
DeepSeek-V3's layer too, on 8 ranks; for the others it is smaller, because that compiles sooner. "largest" is `assign`
for sm_90 with the most experts, experts per token and ranks.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import triton
from triton.backends import nvidia
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


def compile_all(capability: int, calls: Callable[[], None]) -> dict[str, dict[str, int]]:
    """Of what `calls` launch, by the kernel's name: how often each kind of access to global memory stands in its PTX,
    in the most of its variants; and as `spills` the loads and stores of registers that did not suffice, in its machine
    code."""
    accesses: dict[str, Counter[str]] = {}
    launch = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        compiled = launch(self, *args, grid=grid, warmup=True, **kwargs)
        found = Counter(re.findall(r"(?:ld|st|red|atom)\.[\w.]*global[\w.:]*", compiled.asm["ptx"]))
        found["spills"] = len(re.findall(r"\s(?:LDL|STL)[ .]", machine_code(compiled.asm["cubin"])))
        accesses[self.fn.__name__] = accesses.get(self.fn.__name__, Counter()) | found
        return compiled

    JITFunction.run = run
    triton.runtime.driver.set_active(AbsentGpu(capability))
    calls()
    JITFunction.run = launch
    return {name: dict(found) for name, found in accesses.items()}


def machine_code(cubin: bytes) -> str:
    """The cubin disassembled, by the tool that comes with Triton."""
    tool = Path(nvidia.__file__).with_name("bin") / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, file.name], capture_output=True, text=True, check=True).stdout


def integers(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def call_assign(*, num_experts: int, top_k: int, num_ranks: int) -> None:
    """A decode step in one launch, and a prefill in two."""
    from specmoe.kernels.assign import fused

    entries, bits = integers(num_ranks, num_experts), integers(num_experts, -(-num_ranks // 32))
    tables = (entries, entries, bits, integers(num_experts), integers(num_ranks))
    at_most = fused.ONE_LAUNCH_PAIRS // top_k
    for num_tokens, choices in ((at_most, ["cover"]), (at_most + 1, ["cover", "given"])):
        for choice in choices:
            chosen = torch.zeros((num_tokens, top_k), dtype=torch.int32 if choice == "given" else torch.int64)
            fused.assign_op(chosen, torch.zeros(chosen.shape), integers(num_tokens), *tables, choice)


def call_all(*, num_experts: int, top_k: int, num_ranks: int) -> None:
    from specmoe.kernels.assign import group_fused
    from specmoe.kernels.assign.choose_fused import choose_slots_op
    from specmoe.kernels.capacity.keep_best import mark_kept
    from specmoe.kernels.capacity.nominate import nominate_op
    from specmoe.kernels.combine.fused import combine_fused
    from specmoe.kernels.dispatch.fused import dispatch_fused, dispatch_scaled_fused

    rows = torch.zeros((4, 7168), dtype=torch.bfloat16)
    positions = integers(4, top_k)
    dispatch_fused(rows, positions, 32)
    dispatch_scaled_fused(rows.to(torch.float8_e4m3fn), torch.zeros((4, 56)), positions, 32)
    combine_fused(rows, positions, torch.zeros((4, top_k)))
    entries = integers(num_ranks, num_experts)
    tables = (entries, entries, integers(num_experts, 1), integers(num_experts), integers(num_ranks))
    call_assign(num_experts=num_experts, top_k=top_k, num_ranks=num_ranks)
    choose_slots_op(integers(4, top_k), integers(4), *tables, "static")
    for num_pairs in (group_fused.ONE_LAUNCH_PAIRS, group_fused.ONE_LAUNCH_PAIRS + 1):
        group_fused.group_by_slot_op(integers(num_pairs, 1), 0, num_experts, 8)
    mark_kept(torch.zeros(9, dtype=torch.int64), integers(5), integers(4))
    flags = torch.ones((3, 2), dtype=torch.bool)
    nominate_op(flags, torch.zeros((3, 8)), integers(3, 4), torch.ones((2, 8), dtype=torch.bool), integers(3))


if __name__ == "__main__":
    small = partial(call_all, num_experts=8, top_k=2, num_ranks=2)
    found = {
        "80": compile_all(80, small),
        "90": compile_all(90, partial(call_all, num_experts=256, top_k=8, num_ranks=8)),
        "100": compile_all(100, small),
        "largest": compile_all(90, partial(call_assign, num_experts=1024, top_k=32, num_ranks=256)),
    }
    print(json.dumps(found))  # noqa: T201
