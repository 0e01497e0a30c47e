"""Hash a file in bounded memory."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from specmoe.errors import ArtifactError
from specmoe.read_ahead import will_read

# Small enough to stay in a core's cache between reading and hashing.
BLOCK_BYTES = 256 * 2**10
# Asked of the disk at once; the next so many are asked for when half of the last have been hashed.
LOOK_AHEAD_BYTES = 16 * 2**20


def hash_file(path: Path, report: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, hexadecimal; calls `report` with the number of bytes after each block.

    Raises `ArtifactError` when the file cannot be read.
    """
    state = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK_BYTES))
    done = asked = 0
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                done += count
                if done > asked - LOOK_AHEAD_BYTES // 2:
                    will_read(file.fileno(), asked, LOOK_AHEAD_BYTES)
                    asked += LOOK_AHEAD_BYTES
                state.update(buffer[:count])
                if report is not None:
                    report(count)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    return state.hexdigest()
