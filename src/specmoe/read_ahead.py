"""Have the system begin to read what will be needed soon, where its own guess would be wrong."""

import os
from contextlib import suppress


def will_read(descriptor: int, begin: int, num_bytes: int) -> None:
    """Ask for bytes of an open file and return at once; what fails here fails again, and is told, when it is read."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, begin, num_bytes, os.POSIX_FADV_WILLNEED)
