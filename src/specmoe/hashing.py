"""Hash a file in bounded memory."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from specmoe.errors import ArtifactError

# Small enough to stay in a core's cache between reading and hashing.
BLOCK_BYTES = 256 * 2**10


def hash_file(path: Path, report: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, hexadecimal; calls `report` with the number of bytes after each block.

    Raises `ArtifactError` when the file cannot be read.
    """
    state = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                state.update(buffer[:count])
                if report is not None:
                    report(count)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    return state.hexdigest()
