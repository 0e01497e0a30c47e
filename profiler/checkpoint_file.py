"""What an unfinished run keeps beside its output, so that another can go on with it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specmoe.artifact import Array, read_artifact, write_artifact
from specmoe.errors import MismatchError, OutputError
from specmoe.fields import entry
from specmoe.profiler.output_file import OutputFile
from specmoe.profiler.processes import Processes

STATE_FORMAT = "specmoe.profile-state/2"


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """num_batches: how many of its batches the process had done; seconds: in how long; arrays: the recorder's state."""

    num_batches: int
    seconds: float
    arrays: dict[str, Array]


class StateFile:
    """One process's state, renewed as often as `output` says, whole or not at all.

    job: all that a run must have in common with the one that goes on with it, by name.
    """

    def __init__(self, output: OutputFile, processes: Processes, job: Mapping[str, Any]) -> None:
        self.path = state_path(output.path, processes)
        self._job = dict(job)
        self._interval_s = output.checkpoint_minutes * 60
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last state is older than it should be."""
        return time.monotonic() - self._saved_at >= self._interval_s

    def save(self, state: SavedState) -> None:
        """Replace the last state by `state`."""
        description = {
            "format": STATE_FORMAT,
            "job": self._job,
            "num_batches": state.num_batches,
            "seconds": state.seconds,
        }
        write_artifact(self.path, state.arrays, description, force=True)
        self._saved_at = time.monotonic()

    def load(self) -> SavedState | None:
        """The state of an unfinished run, None where there is none; raises `MismatchError` for that of another job."""
        if not self.path.exists():
            return None
        arrays, description = read_artifact(self.path, STATE_FORMAT)
        theirs = entry(description, "job", dict)
        for name, value in self._job.items():
            if theirs.get(name) != value:
                raise MismatchError(
                    f"{self.path} was made with another {name} ({theirs.get(name)}, this run has {value}), so the run "
                    "cannot go on with it; use what it was made with, or start over with --force and without --resume"
                )
        return SavedState(
            num_batches=entry(description, "num_batches", int),
            seconds=entry(description, "seconds", float),
            arrays=arrays,
        )

    def remove(self) -> None:
        """Remove the state, which a finished run has no use for."""
        self.path.unlink(missing_ok=True)


def state_path(output: Path, processes: Processes) -> Path:
    """Where process `processes.number` keeps its state."""
    part = f"-{processes.number}-of-{processes.count}" if processes.count > 1 else ""
    return output.with_name(f"{output.name}.state{part}")


def refuse_foreign_states(output: OutputFile, processes: Processes) -> None:
    """Raise `OutputError` where another number of processes left states, which these could not go on with."""
    own = {state_path(output.path, replace(processes, number=number)) for number in range(processes.count)}
    if foreign := [path for path in output.left_states() if path not in own]:
        raise OutputError(
            f"{foreign[0]} was left by a run of another number of processes; start as many as then to go on with it"
        )
