"""Run the demo's commands one by one, each shown as one would type it; the first that fails ends the demo."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class DemoError(Exception):
    """A step of the demo failed; the message says which and how."""


@dataclass(frozen=True, kw_only=True)
class CommandRunner:
    """Runs commands in `folder`, finding programs beside this Python first; `seconds` notes how long each step took."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def show(self, step: str, *command: str) -> None:
        """Run `command`, its output going where ours goes. Raises `DemoError` unless it exits with 0."""
        self._run(step, command, capture=False)

    def capture(self, step: str, *command: str) -> str:
        """As `show`, but returns what the command printed."""
        return self._run(step, command, capture=True)

    def _run(self, step: str, command: tuple[str, ...], *, capture: bool) -> str:
        print(f"\n$ {shlex.join(command)}", flush=True)
        start = time.monotonic()
        try:
            process = subprocess.run(
                command,
                cwd=self.folder,
                env=_environment(),
                stdout=subprocess.PIPE if capture else None,
                encoding="utf-8",
            )
        except OSError as error:
            raise DemoError(f"step {step!r}: {command[0]} cannot be started: {error.strerror}") from error
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start
        if process.returncode != 0:
            raise DemoError(f"step {step!r} failed: {shlex.join(command)} exited with {process.returncode}")
        return process.stdout or ""


def _environment() -> Mapping[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # No repository root on sys.path (its `kernels` would hide another package), and no network: all is made here.
    fixed = {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **fixed, "PATH": programs}
