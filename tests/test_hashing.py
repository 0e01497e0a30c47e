"""SHA-256 of files, in blocks."""

import hashlib
from pathlib import Path

import pytest

from specmoe import hashing
from specmoe.errors import ArtifactError
from specmoe.hashing import BLOCK_BYTES, hash_file


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 3])
def test_the_hash_is_that_of_the_whole_file_and_every_byte_is_reported(tmp_path: Path, size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(data)
    reported: list[int] = []
    assert hash_file(tmp_path / "file", reported.append) == hashlib.sha256(data).hexdigest()
    assert sum(reported) == size


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        hash_file(tmp_path)


def test_the_disk_is_asked_for_what_comes_next_and_for_all_of_it_once(tmp_path: Path, monkeypatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(hashing, "LOOK_AHEAD_BYTES", 4 * BLOCK_BYTES)
    monkeypatch.setattr(hashing, "will_read", lambda _, begin, size: asked.append((begin // BLOCK_BYTES, size)))
    (tmp_path / "file").write_bytes(bytes(9 * BLOCK_BYTES))
    hash_file(tmp_path / "file")
    assert asked == [(0, 4 * BLOCK_BYTES), (4, 4 * BLOCK_BYTES), (8, 4 * BLOCK_BYTES)]
