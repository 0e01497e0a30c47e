"""The kernels pass Triton's compiler and NVIDIA's assembler for three GPU generations; no GPU is needed for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {
    "_copy_rows", "_combine_rows", "_assign_in_one", "_count", "_number", "_group_in_one", "_count_slots",
    "_sum_programs", "_place", "_choose", "_keep_best", "_nominate",
}  # fmt: skip


@pytest.fixture(scope="module")
def accesses_by_generation(tmp_path_factory):
    """The global loads and stores of each kernel, by compute capability."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, str(Path(__file__).with_name("compile_all.py"))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_every_kernel_compiles_and_rows_move_in_vectors_of_16_bytes(accesses_by_generation, capability):
    accesses = accesses_by_generation[capability]
    assert set(accesses) == KERNELS
    for name in ("_copy_rows", "_combine_rows"):
        assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(accesses[name])
    # Nothing but the count of pairs per slot is atomic.
    atomic = {name for name, found in accesses.items() if any(access.startswith(("atom", "red")) for access in found)}
    assert atomic == {"_group_in_one", "_count_slots"}
