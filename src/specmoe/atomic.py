"""Write a file whole or not at all: a temporary sibling, synced, then renamed over the target."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specmoe.errors import OutputError


def refuse_existing(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise `OutputError` when `path` exists and may not be replaced, or its folder is missing or cannot be written.

    inputs: what the output is made of, which even `force` does not replace.
    """
    try:
        in_folder, is_folder, exists = path.parent.is_dir(), path.is_dir(), path.exists() or path.is_symlink()
        is_input = path.exists() and any(file.exists() and file.samefile(path) for file in inputs)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    if not in_folder:
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
    if is_folder:
        raise OutputError(f"cannot write {path}: it is a folder, a file name was expected")
    if is_input:
        raise OutputError(f"cannot write {path}: it is read for this very output; give another name")
    if exists and not force:
        raise OutputError(f"{path} exists already; give another name or --force to replace it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {path.parent} cannot be written; give another place")


@contextmanager
def atomic_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success sync it and rename it to `path`, else remove it.

    A killed process leaves the old file or the new one. Raises `OutputError` when `path` exists without `force`,
    or when the system cannot write it (a full disk, no permission).
    """
    refuse_existing(path, force=force)
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield temporary
        sync(temporary)
        if force:
            os.replace(temporary, path)
        else:
            _rename_to_new(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # a disk that has become read-only; what went wrong before is what is to be told
            temporary.unlink(missing_ok=True)


def _rename_to_new(temporary: Path, path: Path) -> None:
    """Rename, unless `path` has come into being since it was looked for: a link, unlike a rename, does not replace."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise OutputError(f"{path} was written by another process meanwhile; it is left as it is") from error
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
        return
    temporary.unlink()


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
