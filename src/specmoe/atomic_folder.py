"""Put a finished folder in place of another in one step.

Linux exchanges two names atomically (renameat2 with RENAME_EXCHANGE): whoever looks sees the old folder or the new
one. Where the file system cannot (some network file systems), the old folder is renamed aside first: a kill between
the two renames leaves no folder at the target, the old one under `NAME.replaced` and the new one where it was built.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from specmoe.atomic import sync

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def put_in_place(finished: Path, target: Path) -> bool:
    """Make `finished` be `target`, its sibling; returns whether the former `target` is now at `finished`.

    Raises `OSError` as the system does; `finished` must have been synced.
    """
    replaced = target.exists()
    if not replaced:
        os.rename(finished, target)
    elif not _exchange(finished, target):
        aside = target.with_name(f"{target.name}.replaced")
        os.rename(target, aside)
        os.rename(finished, target)
        os.rename(aside, finished)
    sync(target.parent)
    return replaced


def remove_folder(folder: Path, last: Sequence[str]) -> None:
    """Delete `folder` and all in it, the files named in `last` at the end.

    Those are what the folder is recognised by: a deletion that was cut short can be finished later.
    """
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        elif entry.name not in last:
            os.unlink(entry.path)
    for name in last:
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return False
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if renameat2(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(second))
