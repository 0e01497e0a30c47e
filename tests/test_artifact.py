"""specmoe's own files: what is written comes back, what is damaged is refused, what fails leaves nothing."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from specmoe.artifact import METADATA_KEY, digest, read_artifact, read_description, write_artifact
from specmoe.atomic import atomic_file, refuse_existing
from specmoe.errors import ArtifactError, OutputError
from specmoe.fields import check_range, check_tensor, entry

TENSORS = {"b": np.arange(6, dtype=np.int32).reshape(2, 3), "a": np.ones(2, dtype=np.float16)}
DESCRIPTION = {"format": "test/1", "note": "ü"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "file.safetensors"
    write_artifact(path, TENSORS, DESCRIPTION)
    return path


def test_what_is_written_comes_back(saved: Path) -> None:
    tensors, description = read_artifact(saved, "test/1")
    assert description == DESCRIPTION == read_description(saved)
    assert {name: array.dtype for name, array in tensors.items()} == {"a": np.float16, "b": np.int32}
    np.testing.assert_array_equal(tensors["b"], TENSORS["b"])


def test_the_same_content_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    write_artifact(other, dict(reversed(TENSORS.items())), dict(reversed(DESCRIPTION.items())))
    assert other.read_bytes() == saved.read_bytes()


def test_a_slice_that_is_not_contiguous_is_written_as_its_values(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4)
    write_artifact(tmp_path / "t", {"t": array[:, ::2]}, DESCRIPTION)
    np.testing.assert_array_equal(read_artifact(tmp_path / "t", "test/1")[0]["t"], array[:, ::2])


def test_another_format_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(ArtifactError, match=r"format 'test/1', 'test/2' was expected"):
        read_artifact(saved, "test/2")


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1], ids=["empty", "half length", "no header", "half header", "no tail"])
def test_a_truncated_file_is_refused(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="cannot be read as a safetensors file"):
        read_artifact(saved, "test/1")


def test_a_header_longer_than_the_file_is_refused_without_allocating_it(saved: Path) -> None:
    saved.write_bytes((2**62).to_bytes(8, "little") + saved.read_bytes()[8:])
    with pytest.raises(ArtifactError):
        read_artifact(saved, "test/1")


def test_a_missing_file_and_a_plain_safetensors_file_are_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(ArtifactError, match="is not a file"):
        read_artifact(tmp_path / "none", "test/1")
    save_file(TENSORS, tmp_path / "plain")
    with pytest.raises(ArtifactError, match=f"no '{METADATA_KEY}' entry"):
        read_artifact(tmp_path / "plain", "test/1")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000], ids=["cut", "list", "deep"])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    from safetensors.numpy import save_file

    save_file(TENSORS, tmp_path / "file", metadata={METADATA_KEY: text})
    with pytest.raises(ArtifactError, match="description"):
        read_artifact(tmp_path / "file", "test/1")


def test_an_existing_file_is_replaced_only_with_force(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_artifact(saved, {}, DESCRIPTION)
    assert saved.read_bytes() == before
    write_artifact(saved, {}, DESCRIPTION, force=True)
    assert read_artifact(saved, "test/1")[0] == {}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_artifact(saved, TENSORS, DESCRIPTION, force=True)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "out") as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_process_wrote_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "out"

    def overtaken() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="written by another process"):
        overtaken()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_leads_nowhere_is_there_already(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already"):
        write_artifact(tmp_path / "out", TENSORS, DESCRIPTION)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write whatever the folder's mode
    with pytest.raises(OutputError, match=r"the folder .* cannot be written; give another place"):
        refuse_existing(tmp_path / "out", force=False)


def test_what_went_wrong_is_told_where_cleaning_up_fails_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a read-only disk even removing a file that is not there is an error."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_bytes", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(OutputError, match="Read-only file system"):
        write_artifact(tmp_path / "out", TENSORS, DESCRIPTION)


@pytest.mark.parametrize("force", [False, True])
def test_an_output_is_none_of_its_inputs(saved: Path, force: bool) -> None:
    with pytest.raises(OutputError, match="it is read for this very output"):
        refuse_existing(saved, force=force, inputs=[saved.parent / "missing", saved])
    refuse_existing(saved.parent / "new", force=force, inputs=[saved])


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_a_dtype_that_no_file_of_ours_has_is_refused(tmp_path: Path, dtype: str) -> None:
    header = {"t": {"dtype": dtype, "shape": [1], "data_offsets": [0, 2 if dtype == "BF16" else 1]}}
    text = json.dumps({**header, "__metadata__": {METADATA_KEY: json.dumps(DESCRIPTION)}}).encode()
    path = tmp_path / "file"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 if dtype == "BF16" else 1))
    with pytest.raises(ArtifactError, match=r"dtype that no test/1 file has|cannot be read"):
        read_artifact(path, "test/1")


def test_a_missing_folder_or_a_folder_as_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_artifact(tmp_path / "no" / "file", {}, DESCRIPTION)
    with pytest.raises(OutputError, match="is a folder"):
        write_artifact(tmp_path, {}, DESCRIPTION, force=True)


def test_the_digest_sees_names_dtypes_shapes_values_and_the_description() -> None:
    base = digest(TENSORS, DESCRIPTION)
    assert digest(dict(TENSORS), dict(DESCRIPTION)) == base
    changed = [
        digest({**TENSORS, "c": TENSORS["a"]}, DESCRIPTION),
        digest({**TENSORS, "b": TENSORS["b"].astype(np.int64)}, DESCRIPTION),
        digest({**TENSORS, "b": TENSORS["b"].reshape(3, 2)}, DESCRIPTION),
        digest({**TENSORS, "b": TENSORS["b"] + 1}, DESCRIPTION),
        digest(TENSORS, {**DESCRIPTION, "note": "u"}),
    ]
    assert len({base, *changed}) == 6


def test_fields_say_what_was_found_and_expected() -> None:
    array = np.zeros((2, 3), dtype=np.int32)
    with pytest.raises(ArtifactError, match="tensor x is int32, int64 was expected"):
        check_tensor("x", array, (np.int64,), (2, 3))
    with pytest.raises(ArtifactError, match=r"shape \[2, 3\], \[-1, 4\] was expected"):
        check_tensor("x", array, (np.int32,), (-1, 4))
    with pytest.raises(ArtifactError, match="values from 0 to 0, 1 <= value < 2"):
        check_range("x", array, 1, 2)
    with pytest.raises(ArtifactError, match="nan"):
        check_range("x", np.array([np.nan, 1.0]), 0, 2)
    with pytest.raises(ArtifactError, match="'k' is True, a value of type int was expected"):
        entry({"k": True}, "k", int)
    assert entry({"k": 1}, "k", float) == 1.0
    with pytest.raises(ArtifactError, match="'k' is True"):
        entry({"k": True}, "k", float)
