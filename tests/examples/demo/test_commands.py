import sys
from pathlib import Path

import pytest

from demo.commands import CommandRunner, DemoError


def test_a_command_is_shown_before_its_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = CommandRunner(folder=tmp_path)
    runner.show("greet", "echo", "hello there")
    assert capfd.readouterr().out == "\n$ echo 'hello there'\nhello there\n"
    assert list(runner.seconds) == ["greet"]


def test_captured_output_is_returned_and_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert CommandRunner(folder=tmp_path).capture("place", "pwd").strip() == str(tmp_path)
    assert capfd.readouterr().out == "\n$ pwd\n"


def test_a_failing_command_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"step 'break' failed: .* exited with 3"):
        CommandRunner(folder=tmp_path).show("break", sys.executable, "-c", "raise SystemExit(3)")


def test_a_failing_captured_command_ends_the_demo(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="exited with 1"):
        CommandRunner(folder=tmp_path).capture("break", "false")


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="no-such-program cannot be started: No such file"):
        CommandRunner(folder=tmp_path).show("break", "no-such-program")
