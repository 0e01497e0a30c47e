"""Opening checkpoints: what is read, what is refused, and that no input brings anything but one sentence."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specmoe.checkpoint import INDEX_FILE, open_checkpoint
from specmoe.errors import CheckpointError
from specmoe.safetensors_header import MAX_HEADER_BYTES, read_header, read_metadata

TWO_TENSORS = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}


def raw_file(path: Path, header: Any, data: bytes = bytes(range(32)), length: int | None = None) -> Path:
    """A file of the safetensors form, whatever `header` says (bytes, or something to write as JSON)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def checkpoint(folder: Path, header: Any = TWO_TENSORS, **raw: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    raw_file(folder / "model.safetensors", header, **raw)
    return folder


def sharded(folder: Path, weight_map: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    raw_file(folder / "one.safetensors", {"a": TWO_TENSORS["a"]}, bytes(range(24)))
    raw_file(folder / "two.safetensors", {"b": {**TWO_TENSORS["b"], "data_offsets": [0, 8]}}, bytes(range(24, 32)))
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"} if weight_map is None else weight_map
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def changed(**changes: Any) -> dict[str, Any]:
    return {**TWO_TENSORS, "b": {**TWO_TENSORS["b"], **changes}}


def test_a_single_file_is_read_with_absolute_byte_ranges(tmp_path: Path) -> None:
    opened = open_checkpoint(checkpoint(tmp_path / "m"))
    entry = opened.tensors["b"]
    assert (entry.dtype, entry.shape, entry.num_bytes) == ("BF16", (4,), 8)
    assert entry.file.read_bytes()[entry.begin : entry.end] == bytes(range(24, 32))
    assert opened.config == {"model_type": "mixtral"}
    assert opened.num_bytes == 32


def test_the_fingerprint_does_not_depend_on_the_shards(tmp_path: Path) -> None:
    single, shards = open_checkpoint(checkpoint(tmp_path / "m")), open_checkpoint(sharded(tmp_path / "s"))
    assert single.fingerprint == shards.fingerprint
    assert [path.name for path in shards.files] == ["one.safetensors", "two.safetensors"]


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (TWO_TENSORS, bytes(31) + b"\1"),
        ({**TWO_TENSORS, "a": {**TWO_TENSORS["a"], "shape": [3, 2]}}, bytes(range(32))),
        (changed(dtype="F16"), bytes(range(32))),
        ({"a": TWO_TENSORS["a"], "c": TWO_TENSORS["b"]}, bytes(range(32))),
    ],
    ids=["bytes", "shape", "dtype", "name"],
)
def test_the_fingerprint_sees(tmp_path: Path, header: Any, data: bytes) -> None:
    original = open_checkpoint(checkpoint(tmp_path / "m"))
    assert open_checkpoint(checkpoint(tmp_path / "n", header, data=data)).fingerprint != original.fingerprint


def test_metadata_is_read_and_is_no_tensor(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "f", {"__metadata__": {"format": "pt"}, **TWO_TENSORS})
    assert read_metadata(path) == {"format": "pt"}
    assert set(read_header(path)) == {"a", "b"}


@pytest.mark.parametrize(
    ("header", "raw", "message"),
    [
        (changed(data_offsets=[20, 28]), {}, "overlaps"),
        (changed(data_offsets=[28, 36]), {"data": bytes(36)}, "hole"),
        (changed(data_offsets=[32, 24]), {}, "does not fit"),
        (changed(data_offsets=[2**62, 2**62 + 8]), {}, "hole"),
        (changed(data_offsets=[24, 2**70]), {}, "whole numbers"),
        (changed(data_offsets=[-8, 0]), {}, "whole numbers"),
        (changed(data_offsets=[True, 9]), {}, "whole numbers"),
        (changed(data_offsets=[24]), {}, "whole numbers"),
        (changed(shape=[5]), {}, "does not fit"),
        (changed(shape=[2**62, 2**62, 0, 2**62]), {}, "does not fit"),
        (changed(shape=[1] * 40), {}, "whole numbers"),
        (changed(dtype="F99"), {}, "unknown dtype"),
        (changed(dtype=["F32"]), {}, "unknown dtype"),
        (changed(surprise=1), {}, "exactly dtype, shape and data_offsets"),
        ({**TWO_TENSORS, "b": 5}, {}, "exactly dtype"),
        (TWO_TENSORS, {"data": bytes(31)}, "truncated"),
        (TWO_TENSORS, {"data": bytes(33)}, "truncated or damaged"),
        (TWO_TENSORS, {"length": 2**63}, "announces a header"),
        (TWO_TENSORS, {"length": 200_000_000}, "announces a header"),
        (b'{"a": 1, "a": 1}', {}, "occurs twice"),
        (b'{"\xff": 1}', {}, "not UTF-8"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [32], "data_offsets": [0, 32]}}', {}, "no UTF-8"),
        (b"[" * 100_000, {}, "cannot be read"),
        (b"[1]", {}, "JSON object"),
        (b"{} nonsense", {}, "cannot be read"),
        ({}, {"data": b""}, "hold no tensor"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: Any, raw: Any, message: str) -> None:
    folder = checkpoint(tmp_path / "m", header, **raw)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_header_of_absurd_size_is_not_read_even_where_the_file_has_it(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    with (folder / "model.safetensors").open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(CheckpointError, match="announces a header"):
        open_checkpoint(folder)


def test_a_file_of_a_few_bytes_is_truncated(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "/etc/passwd"}, "plain file name"),
        ({"a": "../one.safetensors"}, "plain file name"),
        ({"a": "sub/one.safetensors"}, "plain file name"),
        ({"a": "..\\one.safetensors"}, "plain file name"),
        ({"a": "one\0.safetensors"}, "plain file name"),
        ({"a": ""}, "plain file name"),
        ({"a": "pytorch_model.bin"}, "only .safetensors"),
        ({"a": 5}, "must map"),
        ([], "must map"),
        ({"a": "one.safetensors", "b": "three.safetensors"}, "is missing"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "no tensor 'b'"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "no tensor 'c'"),
        ({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}, "no tensor 'c'"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    folder = sharded(tmp_path / "m", weight_map)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


def test_a_tensor_that_the_index_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    raw_file(folder / "two.safetensors", {**TWO_TENSORS})
    with pytest.raises(CheckpointError, match="'a' that the index does not place there"):
        open_checkpoint(folder)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="not a folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(empty)
    (empty / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(empty)
    (empty / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickled weights"):
        open_checkpoint(empty)


def test_an_out_of_date_single_file_beside_an_index_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    raw_file(folder / "model.safetensors", TWO_TENSORS)
    with pytest.raises(CheckpointError, match="both"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    outside = raw_file(tmp_path / "outside.safetensors", TWO_TENSORS)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        open_checkpoint(folder)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(folder)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(folder)


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "revision"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    raw_file(blobs / "0123", TWO_TENSORS)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    opened = open_checkpoint(snapshot)
    assert opened.files == (snapshot / "model.safetensors",)
    assert opened.fingerprint == open_checkpoint(checkpoint(tmp_path / "m")).fingerprint


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
NEARLY_A_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4", "BOOL", "", "f32"]) | JSON,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    }
)
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_opens_or_is_refused(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    try:
        opened = open_checkpoint(folder)
        assert len(opened.fingerprint) == 64
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert sorted(folder.rglob("*")) == before


@FUZZ
@given(header=st.dictionaries(st.text(max_size=6), NEARLY_A_TENSOR | JSON, max_size=3) | st.binary(max_size=60))
def test_no_header_brings_a_traceback(tmp_path: Path, header: Any) -> None:
    assert_opens_or_is_refused(checkpoint(tmp_path / "m", header))


@FUZZ
@given(index=st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=3), JSON, max_size=3)}) | JSON)
def test_no_index_brings_a_traceback(tmp_path: Path, index: Any) -> None:
    folder = sharded(tmp_path / "m")
    (folder / INDEX_FILE).write_text(json.dumps(index))
    assert_opens_or_is_refused(folder)


@FUZZ
@given(position=st.integers(0, 200), value=st.integers(0, 255))
def test_no_flipped_byte_brings_a_traceback(tmp_path: Path, position: int, value: int) -> None:
    folder = checkpoint(tmp_path / "m")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[position % len(data)] = value
    (folder / "model.safetensors").write_bytes(data)
    assert_opens_or_is_refused(folder)
