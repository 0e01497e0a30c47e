"""Compiled functions: kept on disk where that is possible, and working where it is not."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
from specmoe.compiled import compiled

@compiled
def twice(value: int) -> int:
    return 2 * value
"""


@pytest.mark.parametrize("writable", [True, False], ids=["a folder to write", "no folder to write"])
def test_a_function_is_compiled_with_or_without_a_folder_for_it(tmp_path: Path, writable: bool) -> None:
    (tmp_path / "module_to_compile.py").write_text(SOURCE, encoding="utf-8")
    # numba keeps machine code beside the source or in the user's cache; even root cannot write into a plain file.
    for blocked in () if writable else ("__pycache__", "cache"):
        (tmp_path / blocked).touch()
    program = f"""
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, {str(tmp_path)!r})
import module_to_compile
print(module_to_compile.twice(21), len(module_to_compile.twice.signatures))
"""
    environment = {"PATH": "", "HOME": str(tmp_path / "cache"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("42 1\n", "")
    kept = list(tmp_path.rglob("*.nbi"))
    assert bool(kept) == writable


def test_one_is_told_of_the_first_compilation_alone_and_of_none_from_disk(tmp_path: Path) -> None:
    (tmp_path / "module_to_compile.py").write_text(SOURCE + SOURCE.replace("twice", "again"), encoding="utf-8")
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import module_to_compile
from specmoe.compiled import on_first_compilation
with on_first_compilation(lambda: print("compiling")):
    module_to_compile.twice(1)
    module_to_compile.again(1)
with on_first_compilation(lambda: print("compiled already")):
    module_to_compile.twice(2)
"""
    command = [sys.executable, "-W", "error", "-c", program]
    runs = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [(run.stdout, run.stderr) for run in runs] == [("compiling\n", ""), ("", "")]
