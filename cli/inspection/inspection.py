"""What was found out about one file or folder: one sentence, named facts for programs, labelled lines for people."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specmoe.cli.terminal import printable
from specmoe.errors import ArtifactError
from specmoe.safetensors_header import TensorEntry

MOST_BYTES = 2**20


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
        return "\n".join(map(printable, [f"{self.path}: a {self.kind}{name}, {size(self.num_bytes)}", *rows]))


@dataclass(frozen=True, kw_only=True)
class FileHeader:
    """The header of a specmoe safetensors file; none of the tensors' bytes have been read yet."""

    path: Path
    description: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    num_bytes: int

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, None where the file does not have it."""
        return self.tensors[name].shape if name in self.tensors else None

    def small_int64(self, name: str) -> list[int]:
        """The values of a one-dimensional int64 tensor, read from the file; raises `ArtifactError` for any other."""
        entry = self.tensors.get(name)
        if entry is None or entry.dtype != "I64" or len(entry.shape) != 1 or entry.num_bytes > MOST_BYTES:
            raise ArtifactError(f"tensor {name} is missing, or is no short row of int64")
        with self.path.open("rb") as file:
            file.seek(entry.begin)
            return [value for (value,) in struct.iter_unpack("<q", file.read(entry.num_bytes))]


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
