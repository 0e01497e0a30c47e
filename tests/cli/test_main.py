"""The command as a whole: what is wrong is said once, in plain letters, with the nearest command's name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_misspelt_command_is_answered_with_the_nearest(command_line) -> None:
    code, out, err = command_line("solv")
    assert (code, out) == (2, "")
    assert "there is no command 'solv'; did you mean solve?" in err
    assert "did you mean" not in command_line("nonsense")[2]


def test_an_error_cannot_steer_the_terminal(command_line, tmp_path) -> None:
    code, _, err = command_line("inspect", tmp_path / "x\x1b[2J")
    assert code == 1
    assert "x\N{REPLACEMENT CHARACTER}[2J cannot be read" in err


def test_a_terminal_of_few_letters_is_told_what_it_can_show(tmp_path) -> None:
    program = "from specmoe.cli.main import main; import sys; sys.argv = ['specmoe', *sys.argv[1:]]; main()"
    (tmp_path / "pl日n\udcff.json").write_text('{"ranks_per_node": [2]}')
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1:strict"}
    command = [sys.executable, "-c", program, "inspect", tmp_path / "pl日n\udcff.json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pl?n" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="wants a device that is always full")
def test_a_result_that_cannot_be_printed_is_one_sentence() -> None:
    program = "from specmoe.cli.main import main; import sys; sys.argv = ['specmoe', 'completion', 'bash']; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "specmoe: the result cannot be printed: No space left on device; give another place\n"


def test_a_process_of_torchrun_leaves_without_taking_the_interpreter_down() -> None:
    """What runs at the interpreter's end would give 7: in its place a thread of the process group could abort."""
    program = (
        "import atexit, os, sys, torch.distributed\n"
        "from specmoe.cli.main import main\n"
        "atexit.register(os._exit, 7)\n"
        "sys.argv = ['specmoe', 'completion', 'bash']\n"
        "main()\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    alone = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    launched = {**environment, "TORCHELASTIC_RUN_ID": "none"}
    of_torchrun = subprocess.run([sys.executable, "-c", program], env=launched, capture_output=True, check=False)
    assert (alone.returncode, of_torchrun.returncode) == (7, 0)
    assert of_torchrun.stdout == alone.stdout != b""
