"""Write a new file from its first byte to its last, past the page cache where it is large.

Through the page cache, the system has to find memory for every byte, copy it there and free it again; over gigabytes
that took more processor time than reading and hashing them. A large file is written from this process's own memory
(O_DIRECT), in whole blocks that lie aligned in memory and in the file. What is left at its end, small files, and file
systems that do not have the way go through the page cache, and to the disk while later bytes are still copied.
"""

import errno
import fcntl
import mmap
import os
from pathlib import Path

from specmoe.placement.reshard.write_back import WriteBack

# A smaller file, of a small model or beside the weights, may stay in the page cache for whoever reads it next.
DIRECT_BYTES = 64 * 2**20
# What the strictest disks ask for; a block of memory and its place in the file are multiples of it.
_ALIGNMENT = 4096


class NewFile:
    """A file that is written once, front to back; a context manager. Raises `OSError` as the system does.

    num_bytes: how long it will be, which decides the way.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        direct = getattr(os, "O_DIRECT", 0) if num_bytes >= DIRECT_BYTES else 0
        try:
            self._descriptor = os.open(path, flags | direct, 0o666)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            direct = 0
            self._descriptor = os.open(path, flags, 0o666)
        self._direct = direct
        self._size = 0
        self._write_back = WriteBack(self._descriptor)

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, block: memoryview) -> None:
        """Append `block`; past the page cache only while every block is a part of an `aligned_buffer` that fills
        whole multiples of 4096 bytes."""
        if len(block) % _ALIGNMENT:
            self._take_the_usual_way()
        written = 0
        while written < len(block):
            try:
                written += os.write(self._descriptor, block[written:])
            except OSError as error:
                if not self._direct or error.errno != errno.EINVAL:
                    raise
                self._take_the_usual_way()
        self._size += len(block)
        if not self._direct:
            self._write_back.reached(self._size)

    def sync(self) -> None:
        """Return once all bytes are on the disk."""
        os.fsync(self._descriptor)

    def _take_the_usual_way(self) -> None:
        """From here on through the page cache."""
        if self._direct:
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~self._direct)
            self._direct = 0


def aligned_buffer(num_bytes: int) -> memoryview:
    """Zeroed memory that starts at a page's start."""
    return memoryview(mmap.mmap(-1, num_bytes))
