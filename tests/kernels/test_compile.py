"""The kernels pass Triton's compiler and NVIDIA's assembler for three GPU generations; no GPU is needed for it."""

import json
import os
import re
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
    """The global loads and stores of each kernel and their numbers, by compute capability."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, str(Path(__file__).with_name("compile_all.py"))]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


GENERATIONS = pytest.mark.parametrize("capability", ["80", "90", "100"])


@GENERATIONS
def test_every_kernel_compiles_without_spilling_registers(accesses_by_generation, capability):
    accesses = accesses_by_generation[capability]
    assert set(accesses) == KERNELS
    assert {name: found["spills"] for name, found in accesses.items() if "spills" in found} == {}


@GENERATIONS
def test_rows_move_in_vectors_of_16_bytes_and_no_other(accesses_by_generation, capability):
    for name in ("_copy_rows", "_combine_rows"):
        wide = {access for access in accesses_by_generation[capability][name] if re.search(r"\.v[24]\.", access)}
        assert wide == {"ld.global.v4.b32", "st.global.v4.b32"}
        # Single words are positions and weights, which are read, never written.
        narrow = set(accesses_by_generation[capability][name]) - wide - {"spills"}
        assert narrow == {"ld.global.b32"}


@GENERATIONS
def test_no_kernel_has_an_atomic_operation_on_memory(accesses_by_generation, capability):
    for name, found in accesses_by_generation[capability].items():
        assert not [access for access in found if access.startswith(("atom", "red"))], name


def test_assign_compiles_at_the_limits_of_what_is_supported(accesses_by_generation):
    assert set(accesses_by_generation["largest"]) == {"_assign_in_one", "_count", "_number"}
