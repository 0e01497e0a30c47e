import sys
from pathlib import Path

import pytest

from demo import run_demo
from demo.commands import CommandRunner, DemoError
from demo.reuse import Reuse


class FakeCommands(CommandRunner):
    """Notes the commands in place of running them, and makes the outputs that they name."""

    def _run(self, step: str, command: tuple[str, ...], *, capture: bool) -> str:
        self.seconds[" ".join(command)] = 0.0
        if step == "train":
            for name in ("text", "model"):
                (self.folder / name).mkdir(exist_ok=True)
            (self.folder / "training.json").write_text("{}")
        elif "-o" in command:
            (self.folder / command[command.index("-o") + 1]).touch()
        return ""


def steps_of(work: Path) -> list[str]:
    """The commands that training and profiling need in `work`."""
    commands = FakeCommands(folder=work)
    demo = run_demo.Demo(work=work, run_command=commands, reuse=Reuse(folder=work / "made-from"))
    digest = demo.train()
    demo.profile("fit", "profile", digest)
    return list(commands.seconds)


def test_a_second_run_reuses_the_model_and_the_profile(tmp_path: Path) -> None:
    first = steps_of(tmp_path)
    assert len(first) == 2
    assert first[1] == "specmoe profile model --data text/profile.jsonl --domain-column domain -o fit.profile --force"
    assert steps_of(tmp_path) == []


def test_what_was_lost_is_made_again(tmp_path: Path) -> None:
    steps_of(tmp_path)
    (tmp_path / "fit.profile").unlink()
    assert [command.split()[1] for command in steps_of(tmp_path)] == ["profile"]


def test_other_settings_make_everything_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps_of(tmp_path)
    monkeypatch.setattr(run_demo, "digest_of_sources", lambda folder: "changed")
    assert len(steps_of(tmp_path)) == 2


def test_a_failing_step_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: run_demo.Demo) -> None:
        raise DemoError("step 'solve' failed")

    monkeypatch.setattr(run_demo.Demo, "run", fail)
    monkeypatch.setattr(sys, "argv", ["run_demo.py", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="The demo failed: step 'solve' failed"):
        run_demo.main()
    assert not (tmp_path / "RESULT.md").exists()
