"""Copy ranges of source files, and what was computed from them, into one new file, hashing on the way.

Memory is bounded by a buffer, or by one matrix that is written transposed.
"""

import hashlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from specmoe.errors import CheckpointError
from specmoe.placement.reshard.manifest import FileRecord
from specmoe.placement.reshard.new_file import NewFile, aligned_buffer
from specmoe.placement.reshard.progress import Report
from specmoe.read_ahead import will_read

# Large enough for few waits for the disk, small enough to stay in a processor's cache from reading to hashing.
BUFFER_BYTES = 2**20
# What the system is asked to read before it is needed: experts lie in the order of the source, not in the plan's, and
# no system foresees that.
LOOK_AHEAD_BYTES = 16 * 2**20
LOOK_AHEAD_STEP_BYTES = 2 * 2**20
_MAX_OPEN_FILES = 32


class Span(NamedTuple):
    """The bytes `begin` to `end` of a file."""

    path: Path
    begin: int
    end: int


class TransposedMatrix(NamedTuple):
    """A matrix of `rows` x `columns` in a file, to be written transposed; it is held whole."""

    span: Span
    rows: int
    columns: int

    def read(self, sources: "SourceFiles") -> bytes:
        content = sources.read(self.span.path, self.span.begin, self.span.end - self.span.begin)
        size = len(content) // (self.rows * self.columns)
        return np.frombuffer(content, dtype=f"u{size}").reshape(self.rows, self.columns).T.tobytes()


Part = Span | TransposedMatrix | bytes


class CopyStoppedError(Exception):
    """Another thread failed or the user interrupted; what this thread was writing is of no use."""


class SourceFiles:
    """Positioned reads from many files, the last few kept open; a context manager, for one thread."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def __enter__(self) -> "SourceFiles":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def read(self, path: Path, position: int, count: int) -> bytes:
        """`count` bytes from `position` of `path`; raises `CheckpointError` when the file ends before."""
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), path, position)
        return bytes(buffer)

    def read_into(self, buffer: memoryview, path: Path, position: int) -> None:
        """Fill `buffer` from `position` of `path`; raises `CheckpointError` when the file ends before."""
        try:
            descriptor = self._descriptor(path)
            filled = 0
            while filled < len(buffer):
                count = os.preadv(descriptor, [buffer[filled:]], position + filled)
                if count == 0:
                    raise CheckpointError(f"{path} became shorter while it was read; copy the checkpoint again")
                filled += count
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error

    def will_read(self, span: Span) -> None:
        """Have the system begin to read `span`; raises `CheckpointError` when the file cannot be opened."""
        try:
            will_read(self._descriptor(span.path), span.begin, span.end - span.begin)
        except OSError as error:
            raise CheckpointError(f"{span.path} cannot be read: {error.strerror or error}") from error

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            if len(self._open) >= _MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY)
        self._open.move_to_end(path)
        return self._open[path]


def write_file(
    path: Path, header: bytes, parts: Iterable[Part], *, num_bytes: int, report: Report, stop: threading.Event
) -> FileRecord:
    """Write `header` and then `parts`, each of a file or as it is, to `path` and sync it; returns its size and hash.

    num_bytes: how many there will be. Calls `report` with the number of bytes after each block; raises
    `CopyStoppedError` once `stop` is set, `CheckpointError` where the source ends early, and `OSError` as the system
    does.
    """
    state = hashlib.sha256()
    size = 0
    with SourceFiles() as sources, NewFile(path, num_bytes) as target:
        for block in _blocks(sources, chain([header], parts)):
            if stop.is_set():
                raise CopyStoppedError
            state.update(block)
            target.write(block)
            size += len(block)
            report(len(block))
        target.sync()
    return FileRecord(num_bytes=size, sha256=state.hexdigest())


def _blocks(sources: SourceFiles, parts: Iterable[Part]) -> Iterator[memoryview]:
    """The bytes to write in blocks of at most `BUFFER_BYTES`; each is valid until the next is asked for."""
    buffer = aligned_buffer(BUFFER_BYTES)
    filled = 0
    for piece in _announced(sources, _merged(parts)):
        part = piece.read(sources) if isinstance(piece, TransposedMatrix) else piece
        position, end = (0, len(part)) if isinstance(part, bytes) else (part.begin, part.end)
        while position < end:
            count = min(end - position, BUFFER_BYTES - filled)
            free = buffer[filled : filled + count]
            if isinstance(part, bytes):
                free[:] = part[position : position + count]
            else:
                sources.read_into(free, part.path, position)
            position += count
            filled += count
            if filled == BUFFER_BYTES:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def _announced(sources: SourceFiles, parts: Iterable[Part]) -> Iterator[Part]:
    """`parts` in small pieces, each after the system was asked to read those of the next `LOOK_AHEAD_BYTES`."""
    waiting: deque[Part] = deque()
    ahead = 0
    for part in chain.from_iterable(map(_pieces, parts)):
        if isinstance(part, Span):
            sources.will_read(part)
        waiting.append(part)
        ahead += _size(part)
        while ahead > LOOK_AHEAD_BYTES:
            ahead -= _size(waiting[0])
            yield waiting.popleft()
    yield from waiting


def _pieces(part: Part) -> Iterator[Part]:
    if not isinstance(part, Span):
        yield part
        return
    for begin in range(part.begin, part.end, LOOK_AHEAD_STEP_BYTES):
        yield Span(part.path, begin, min(begin + LOOK_AHEAD_STEP_BYTES, part.end))


def _size(part: Part) -> int:
    """Bytes that `part` is read from or that it is."""
    span = part.span if isinstance(part, TransposedMatrix) else part
    return len(span) if isinstance(span, bytes) else span.end - span.begin


def _merged(parts: Iterable[Part]) -> Iterator[Part]:
    """`parts` with neighbours of one file joined, so that each is one read."""
    current: Span | None = None
    for part in parts:
        if not isinstance(part, Span):
            if current:
                yield current
            current = None
            yield part
        elif current and current.path == part.path and current.end == part.begin:
            current = Span(part.path, current.begin, part.end)
        else:
            if current:
                yield current
            current = part
    if current:
        yield current
