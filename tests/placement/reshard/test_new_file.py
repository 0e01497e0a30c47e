"""A large file goes past the page cache where the system can, and is the same file where it cannot."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.reshard import new_file
from specmoe.placement.reshard.new_file import NewFile, aligned_buffer

CONTENT = np.random.default_rng(0).bytes(3 * 4096 + 100)
LENGTHS = (8192, 4096, 100)


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture(autouse=True)
def file_system_can(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary folder has no O_DIRECT")


@pytest.fixture
def ways(monkeypatch) -> list[bool]:
    """Whether each write went past the page cache."""
    write, seen = os.write, list[bool]()

    def watched(descriptor: int, block: memoryview) -> int:
        seen.append(is_direct(descriptor))
        return write(descriptor, block)

    monkeypatch.setattr(os, "write", watched)
    return seen


def write_all(path: Path, num_bytes: int, lengths: tuple[int, ...] = LENGTHS) -> None:
    buffer, position = aligned_buffer(8192), 0
    with NewFile(path, num_bytes) as file:
        for length in lengths:
            buffer[:length] = CONTENT[position : position + length]
            file.write(buffer[:length])
            position += length
        file.sync()
    assert path.read_bytes() == CONTENT[:position]


def test_only_the_end_of_a_large_file_goes_through_the_page_cache(tmp_path, ways) -> None:
    write_all(tmp_path / "out", new_file.DIRECT_BYTES)
    assert ways == [True, True, False]


def test_after_a_part_block_the_rest_is_not_aligned_any_more(tmp_path, ways) -> None:
    write_all(tmp_path / "out", new_file.DIRECT_BYTES, (100, 8192))
    assert ways == [False, False]


def test_a_small_file_may_stay_in_the_page_cache(tmp_path, ways) -> None:
    write_all(tmp_path / "out", new_file.DIRECT_BYTES - 1)
    assert ways == [False, False, False]


def test_a_file_system_that_refuses_at_the_opening(tmp_path, ways, monkeypatch) -> None:
    opening = os.open

    def refuse(path: Path, flags: int, mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return opening(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    write_all(tmp_path / "out", new_file.DIRECT_BYTES)
    assert ways == [False, False, False]


def test_a_file_system_that_refuses_at_the_writing(tmp_path, monkeypatch) -> None:
    write, refused = os.write, []

    def refuse(descriptor: int, block: memoryview) -> int:
        if is_direct(descriptor):
            refused.append(len(block))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, block)

    monkeypatch.setattr(os, "write", refuse)
    write_all(tmp_path / "out", new_file.DIRECT_BYTES)
    assert refused == [8192]


def test_a_write_that_stops_early_goes_on_there(tmp_path, monkeypatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, block: write(descriptor, block[: min(len(block), 4096)]))
    write_all(tmp_path / "out", new_file.DIRECT_BYTES)


def test_other_errors_are_the_systems(tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        write_all(tmp_path / "out", new_file.DIRECT_BYTES)
