"""Where a profile goes, and on what terms."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specmoe.artifact import read_description
from specmoe.atomic import refuse_existing
from specmoe.errors import OutputError, UsageError


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """Where the profile goes, and beside it the state of a run that is not finished, renewed every so many minutes.

    resume: go on from such a state where there is one. force: replace what is there, and drop such states. inputs: the
    data, which are never replaced.
    """

    path: Path
    resume: bool = False
    force: bool = False
    checkpoint_minutes: float = 10.0
    inputs: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if self.checkpoint_minutes < 0:
            raise UsageError(f"checkpoint_minutes is {self.checkpoint_minutes}, at least 0 was expected")

    def refuse_existing(self) -> None:
        """Raise `OutputError` where the profile, or the state of an unfinished run, is there and must stay."""
        left = [] if self.resume or self.force or not self.path.parent.is_dir() else self.left_states()
        if left:
            raise OutputError(
                f"{left[0]} is left of a run that did not finish; give --resume to go on with it, or --force to start "
                "over"
            )
        refuse_existing(self.path, force=self.may_replace(), inputs=self.inputs)

    def left_states(self) -> list[Path]:
        """The states of all processes of unfinished runs for this output."""
        name = re.compile(re.escape(self.path.name) + r"\.state(-\d+-of-\d+)?")
        return sorted(path for path in self.path.parent.iterdir() if name.fullmatch(path.name))

    def may_replace(self) -> bool:
        """Whether what is there may go: with `force`, and where it is the part of a run that this one goes on with."""
        if self.force or not self.resume or not self.path.is_file():
            return self.force
        return read_description(self.path).get("seen_share") is not None
