"""The folder in which a compiled checkpoint is built, and the journal that lets an interrupted run go on.

`OUT.partial` is a sibling of OUT. Its journal names the work (a key over source, plan and layout) and each file that
is finished and synced. A later run with the same key keeps those; with another key it starts afresh. A lock, held
from before the first look to after the last deletion, keeps two runs apart. Only a folder that holds our journal or
manifest, or nothing, is ever deleted.
"""

import json
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from specmoe.atomic import sync
from specmoe.atomic_folder import put_in_place, remove_folder
from specmoe.errors import ArtifactError, OutputError
from specmoe.placement.reshard.manifest import MANIFEST_FILE, FileRecord, check_relative_name
from specmoe.placement.reshard.output_lock import output_lock

JOURNAL_FILE = ".specmoe-journal"
_OURS = (MANIFEST_FILE, JOURNAL_FILE)


def refuse_output(out: Path, *, force: bool) -> None:
    """Raise `OutputError` unless a compiled checkpoint may be written to `out`."""
    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: the folder {out.parent} does not exist; create it first")
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputError(f"{out} exists already; give another name or --force to replace it")
    if not out.is_dir() or not (_is_ours(out) or not os.listdir(out)):
        raise OutputError(f"{out} is not a compiled checkpoint, so --force does not replace it; remove it yourself")


def partial_folder(out: Path) -> Path:
    """Where `out` is built, and what an interrupted run leaves."""
    return out.with_name(f"{out.name}.partial")


class Staging:
    """The folder under construction for `out`; a context manager that holds the lock.

    `finished` has the files that an earlier run with the same `key` completed. Raises `OutputError` on entering, and
    again on publishing, unless `out` may be written (with `force`: replaced): it may have come up meanwhile.
    """

    def __init__(self, out: Path, key: str, *, force: bool = False) -> None:
        self.out = out
        self.folder = partial_folder(out)
        self.finished: dict[str, FileRecord] = {}
        self._key = key
        self._force = force
        self._journal = -1
        self._lock = ExitStack()

    def __enter__(self) -> "Staging":
        with ExitStack() as stack:
            stack.enter_context(output_lock(self.out))
            stack.callback(self._close_journal)
            self._prepare()
            self._lock = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Keep the folder for a later run if the user interrupted, delete it after any other failure."""
        with self._lock:
            if isinstance(error, Exception) and self.folder.is_dir():
                remove_folder(self.folder, _OURS)

    def note_finished(self, name: str, record: FileRecord) -> None:
        """Write down that the file `name` is complete and synced."""
        written = (self.folder / name).stat().st_mtime_ns
        self._append({"name": name, "bytes": record.num_bytes, "sha256": record.sha256, "written_ns": written})
        self.finished[name] = record

    def publish(self) -> None:
        """Put the folder in place of `out`; all files, the manifest included, are there and synced."""
        refuse_output(self.out, force=self._force)
        (self.folder / JOURNAL_FILE).unlink()
        sync(self.folder)
        if put_in_place(self.folder, self.out):
            remove_folder(self.folder, _OURS)

    def _prepare(self) -> None:
        refuse_output(self.out, force=self._force)
        if os.path.lexists(self.folder) and not self._resume():
            remove_folder(self.folder, _OURS)
        if self._journal < 0:
            self.folder.mkdir()
            self._open_journal()
            self._append({"key": self._key})

    def _resume(self) -> bool:
        """Take over what an earlier run left; False when it is of no use but may be deleted."""
        if (
            not self.folder.is_dir()
            or self.folder.is_symlink()
            or not (_is_ours(self.folder) or not os.listdir(self.folder))
        ):
            raise OutputError(f"{self.folder} is in the way and was not written by specmoe; move it elsewhere")
        if not (self.folder / JOURNAL_FILE).is_file():
            return False
        self._open_journal()
        lines = _read_journal(self.folder / JOURNAL_FILE)
        if not lines or lines[0].get("key") != self._key:
            self._close_journal()
            return False
        for line in lines[1:]:
            self._keep(line)
        os.write(self._journal, b"\n")  # ends a line that a kill cut short
        self._remove_unfinished()
        return True

    def _keep(self, line: dict[str, object]) -> None:
        """Count the file of a journal's line as finished if it lies there as it was left: same size, not touched."""
        name, size, sha256 = line.get("name"), line.get("bytes"), line.get("sha256")
        if not (isinstance(name, str) and isinstance(size, int) and isinstance(sha256, str)):
            return
        try:
            check_relative_name(name)
            status = (self.folder / name).lstat()
        except (ArtifactError, OSError):
            return
        if stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (size, line.get("written_ns")):
            self.finished[name] = FileRecord(num_bytes=size, sha256=sha256)

    def _remove_unfinished(self) -> None:
        for path in sorted(self.folder.rglob("*"), reverse=True):
            name = path.relative_to(self.folder).as_posix()
            if (path.is_symlink() or not path.is_dir()) and name not in self.finished and name != JOURNAL_FILE:
                path.unlink()

    def _open_journal(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        self._journal = os.open(self.folder / JOURNAL_FILE, flags, 0o644)

    def _close_journal(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def _append(self, line: dict[str, object]) -> None:
        os.write(self._journal, json.dumps(line).encode() + b"\n")
        os.fsync(self._journal)


def _is_ours(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _OURS)


def _read_journal(path: Path) -> list[dict[str, object]]:
    """The journal's lines, without one that was cut short by a kill."""
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
