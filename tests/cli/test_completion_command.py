"""Shells complete commands and options."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(command_line, shell):
    code, out, _ = command_line("completion", shell)
    assert code == 0
    assert f"_SPECMOE_COMPLETE={shell}_complete" in out


@pytest.mark.parametrize(("words", "expected"), [("specmoe so", "solve"), ("specmoe solve --attent", "--attention")])
def test_words_are_completed(words, expected):
    environment = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_SPECMOE_COMPLETE": "bash_complete"}
    program = "import sys; sys.argv[0] = 'specmoe'; from specmoe.cli.main import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == [f"plain,{expected}"]
