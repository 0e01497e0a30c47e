"""What was found out about one file or folder: one sentence, named facts for programs, labelled lines for people."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specmoe.safetensors_header import TensorEntry


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """kind: "profile", "plan", …; format: as the file names it, None where it has none; lines: label and text."""

    path: Path
    kind: str
    format: str | None
    num_bytes: int
    facts: Mapping[str, Any]
    lines: Sequence[tuple[str, str]]

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "kind": self.kind,
            "format": self.format,
            "num_bytes": self.num_bytes,
            **self.facts,
        }

    def to_text(self) -> str:
        """The lines under one heading; what a file may have smuggled in for the terminal is made visible."""
        name = "" if self.format is None else f" ({self.format})"
        width = max(len(label) for label, _ in self.lines)
        rows = [f"  {label:<{width}}  {text}" for label, text in self.lines]
        return "\n".join(map(_printable, [f"{self.path}: a {self.kind}{name}, {size(self.num_bytes)}", *rows]))


@dataclass(frozen=True, kw_only=True)
class FileHeader:
    """The header of a specmoe safetensors file; none of the tensors' bytes have been read."""

    path: Path
    description: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    num_bytes: int

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, None where the file does not have it."""
        return self.tensors[name].shape if name in self.tensors else None


def size(num_bytes: int) -> str:
    """A number of bytes in the largest binary unit that leaves at least one."""
    value, unit = float(num_bytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """ "1 rank", "1,024 ranks"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
