"""Have the system write a growing file to the disk while later bytes are still copied.

Left alone it begins when much memory is dirty, or when the file is synced: copying and writing then take turns where
they could go on together. Linux alone has the call (sync_file_range); elsewhere the sync at the end does all of it.
"""

import ctypes
import functools
import sys
from collections.abc import Callable

STEP_BYTES = 8 * 2**20
# A page on its way to the disk is better not written to: the last, unfinished one waits for the next step.
_ALIGNMENT = 64 * 2**10
_SYNC_FILE_RANGE_WRITE = 2

_Start = Callable[[int, int, int, int], int]


class WriteBack:
    """Starts the writing of the file `descriptor`, which is written from its start on, in steps of `STEP_BYTES`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begun = 0

    def reached(self, size: int) -> None:
        """Start the writing of all bytes before `size`, once a step of them has come together; does not wait for it.

        What fails here is reported by the sync of the same descriptor, which has to follow.
        """
        if size - self._begun < STEP_BYTES:
            return
        end = size - size % _ALIGNMENT
        if start := _sync_file_range():
            start(self._descriptor, self._begun, end - self._begun, _SYNC_FILE_RANGE_WRITE)
        self._begun = end


@functools.cache
def _sync_file_range() -> _Start | None:
    """The system's call, or None where there is none."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    start: _Start = function
    return start
