"""The command as a whole: what is wrong is said once, in plain letters, with the nearest command's name."""

import os
import subprocess
import sys


def test_a_misspelt_command_is_answered_with_the_nearest(command_line) -> None:
    code, out, err = command_line("solv")
    assert (code, out) == (2, "")
    assert "there is no command 'solv'; did you mean solve?" in err
    assert "did you mean" not in command_line("nonsense")[2]


def test_an_error_cannot_steer_the_terminal(command_line, tmp_path) -> None:
    code, _, err = command_line("inspect", tmp_path / "x\x1b[2J")
    assert code == 1
    assert "x\N{REPLACEMENT CHARACTER}[2J cannot be read" in err


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
