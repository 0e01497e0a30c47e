"""Keep other runs away from an output while it is being written.

The lock is a file of its own beside the output: folders are renamed and deleted under it, itself it stays where it is.
It is deleted while still held; whoever waited for the deleted file finds another or none at that name, and starts over.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specmoe.errors import OutputError


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Hold `OUT.partial.lock`; raises `OutputError` at once where another process holds it or a stranger's file lies.

    A killed process leaves the file, not the lock.
    """
    path = out.with_name(f"{out.name}.partial.lock")
    descriptor = _acquire(path, out)
    try:
        yield
    finally:
        if _is_at(path, descriptor):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path, out: Path) -> int:
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(f"another specmoe reshard is writing {out}; wait for it to end") from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor of the lock file, which is empty: one with something in it is not ours to delete."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):  # a link, a folder
            raise _stranger(path) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > 0:
        os.close(descriptor)
        raise _stranger(path)
    return descriptor


def _stranger(path: Path) -> OutputError:
    return OutputError(f"{path} is in the way and was not written by specmoe; move it elsewhere")


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the locked file: its holder may have deleted it between opening and locking."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
