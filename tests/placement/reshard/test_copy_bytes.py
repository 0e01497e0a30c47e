"""What is copied comes out whole and in order, whatever the sizes of buffers, look-ahead and write-back steps."""

import errno
import hashlib
import os
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.reshard import copy_bytes, new_file, write_back
from specmoe.placement.reshard.copy_bytes import CopyStoppedError, Part, Span, TransposedMatrix, write_file
from specmoe.placement.reshard.write_back import WriteBack
from specmoe.read_ahead import will_read


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(np.random.default_rng(0).bytes(10_000))
    return path


def copy(path: Path, header: bytes, parts: list[Part]) -> tuple[bytes, list[int]]:
    """What was written, and the numbers of bytes that were reported."""
    reported: list[int] = []
    record = write_file(path, header, parts, num_bytes=10**6, report=reported.append, stop=threading.Event())
    written = path.read_bytes()
    assert (record.num_bytes, record.sha256) == (len(written), hashlib.sha256(written).hexdigest())
    return written, reported


@pytest.mark.parametrize("buffer", [1, 7, 256, 10**6])
@pytest.mark.parametrize("ahead", [0, 100, 10**6])
@pytest.mark.parametrize("direct_bytes", [0, 10**9])
def test_every_part_is_written_once_and_in_order(tmp_path, source, monkeypatch, buffer, ahead, direct_bytes) -> None:
    monkeypatch.setattr(new_file, "DIRECT_BYTES", direct_bytes)
    monkeypatch.setattr(copy_bytes, "BUFFER_BYTES", buffer)
    monkeypatch.setattr(copy_bytes, "LOOK_AHEAD_BYTES", ahead)
    monkeypatch.setattr(copy_bytes, "LOOK_AHEAD_STEP_BYTES", 64)
    monkeypatch.setattr(write_back, "STEP_BYTES", 128)
    content = source.read_bytes()
    parts = [
        Span(source, 10, 500),
        Span(source, 500, 700),
        b"written as it is",
        Span(source, 0, 1),
        TransposedMatrix(Span(source, 1000, 1012), 2, 3),
        Span(source, 7000, 7000),
        Span(source, 9000, 10_000),
    ]
    turned = np.frombuffer(content[1000:1012], np.uint16).reshape(2, 3).T.tobytes()
    expected = b"head" + content[10:700] + b"written as it is" + content[:1] + turned + content[9000:]
    written, reported = copy(tmp_path / "out", b"head", parts)
    assert written == expected
    assert sum(reported) == len(expected)


def test_what_comes_next_is_asked_for_before_it_is_read(tmp_path, source, monkeypatch) -> None:
    calls: list[tuple[str, int, int]] = []
    monkeypatch.setattr(copy_bytes, "LOOK_AHEAD_BYTES", 3000)
    monkeypatch.setattr(copy_bytes, "BUFFER_BYTES", 2000)
    monkeypatch.setattr(copy_bytes, "will_read", lambda _, begin, size: calls.append(("ask", begin, begin + size)))
    read_into = copy_bytes.SourceFiles.read_into

    def read(self: copy_bytes.SourceFiles, buffer: memoryview, path: Path, position: int) -> None:
        calls.append(("read", position, position + len(buffer)))
        read_into(self, buffer, path, position)

    monkeypatch.setattr(copy_bytes.SourceFiles, "read_into", read)
    copy(tmp_path / "out", b"", [Span(source, 8000, 10_000), Span(source, 0, 2000), Span(source, 4000, 6000)])
    assert calls == [
        ("ask", 8000, 10_000),
        ("ask", 0, 2000),
        ("read", 8000, 10_000),
        ("ask", 4000, 6000),
        ("read", 0, 2000),
        ("read", 4000, 6000),
    ]


def test_the_writing_to_disk_begins_in_steps_of_whole_pages(monkeypatch) -> None:
    started: list[tuple[int, ...]] = []
    monkeypatch.setattr(write_back, "_sync_file_range", lambda: lambda *call: started.append(call) or 0)
    monkeypatch.setattr(write_back, "STEP_BYTES", 2**18)
    ahead = WriteBack(5)
    for size in (2**17, 2**18 + 100, 2**18 + 200, 2**19 + 70_000):
        ahead.reached(size)
    assert started == [(5, 0, 2**18, 2), (5, 2**18, 2**18 + 2**16, 2)]


def test_a_system_that_cannot_begin_early_writes_at_the_end(tmp_path, source, monkeypatch) -> None:
    monkeypatch.setattr(write_back, "_sync_file_range", lambda: None)
    monkeypatch.setattr(write_back, "STEP_BYTES", 1)
    assert copy(tmp_path / "out", b"", [Span(source, 0, 10_000)])[0] == source.read_bytes()


def test_what_fails_on_its_way_to_the_disk_is_not_called_written(tmp_path, source, monkeypatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        copy(tmp_path / "out", b"", [Span(source, 0, 10_000)])


def test_an_early_reading_that_fails_is_left_to_the_reading() -> None:
    reader, writer = os.pipe()
    will_read(reader, 0, 10)
    os.close(reader)
    os.close(writer)
    will_read(reader, 0, 10)


def test_a_copy_ends_soon_after_it_is_told_to(tmp_path, source, monkeypatch) -> None:
    monkeypatch.setattr(copy_bytes, "BUFFER_BYTES", 1000)
    stop, reported = threading.Event(), []

    def report(count: int) -> None:
        reported.append(count)
        stop.set()

    with pytest.raises(CopyStoppedError):
        write_file(tmp_path / "out", b"", [Span(source, 0, 10_000)], num_bytes=1, report=report, stop=stop)
    assert reported == [1000]


def test_a_tensor_larger_than_the_memory_that_copying_takes(tmp_path) -> None:
    size = 100 * 2**20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    parts = [Span(tmp_path / "large", 1000, size), Span(tmp_path / "large", 0, 1000)]
    tracemalloc.start()
    try:
        stop = threading.Event()
        record = write_file(tmp_path / "out", b"h", parts, num_bytes=size + 1, report=lambda _: None, stop=stop)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert record.num_bytes == size + 1 == (tmp_path / "out").stat().st_size
    assert peak < 2 * copy_bytes.BUFFER_BYTES, "beside the buffer itself"
