"""Make a thing only if it is not there yet from the same causes, so that a second run of the demo is quick."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """Notes in `folder`, one per thing, which name the digest of everything that it was made from."""

    folder: Path

    def has(self, name: str, digest: str, outputs: Iterable[Path]) -> bool:
        """Whether `name` was made from `digest` and all of its `outputs` are still there."""
        note = self._note(name)
        return note.is_file() and note.read_text(encoding="utf-8") == digest and all(path.exists() for path in outputs)

    def forget(self, name: str) -> None:
        """Call before making `name` anew, so that a broken attempt does not count."""
        self._note(name).unlink(missing_ok=True)

    def remember(self, name: str, digest: str) -> None:
        """Call when `name` is complete."""
        self.folder.mkdir(exist_ok=True)
        self._note(name).write_text(digest, encoding="utf-8")

    def _note(self, name: str) -> Path:
        return self.folder / f"{name}.digest"


def digest_of(*causes: object) -> str:
    """SHA-256 over JSON-able values, as hexadecimal."""
    return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()


def digest_of_sources(folder: Path) -> str:
    """SHA-256 over the names and contents of all Python files under `folder` (links followed), as hexadecimal."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        state.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()
