"""Read the header of a safetensors file: where each tensor's bytes lie, believed only after every check.

The format: 8 bytes little-endian header length N, N bytes of JSON `{name: {dtype, shape, data_offsets}}` with an
optional `__metadata__`, then the tensors' bytes without holes. Our own parser, because moving bytes needs the
ranges, and because numpy has no name for bfloat16 or the 8-bit floats.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from specmoe.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 32
_METADATA = "__metadata__"
_KEYS = {"dtype", "shape", "data_offsets"}

# Bits per element of every dtype that the format knows.
DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class TensorEntry(NamedTuple):
    """One tensor's place: the bytes `begin` to `end` of `file`, row-major, of `dtype` (the format's name for it)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of `path`; raises `CheckpointError` unless they fill the file exactly and fit their shapes."""
    header, start, size = _read_json_header(path)
    header.pop(_METADATA, None)
    _check_names(path, header)
    entries = {name: _entry(path, name, value, start) for name, value in header.items()}
    _check_offsets(path, entries, start, size)
    return entries


def read_metadata(path: Path) -> dict[str, str]:
    """The strings under `__metadata__` in the header of `path`, none where it has none."""
    metadata = _read_json_header(path).header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} is damaged: its {_METADATA} must map names to strings")
    return metadata


def parse_json_object(path: Path, text: bytes) -> dict[str, Any]:
    """Parse untrusted JSON: UTF-8, one object, no name twice; raises `CheckpointError` naming `path`."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is damaged: its JSON is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its JSON cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: a JSON object was expected")
    return value


class _JsonHeader(NamedTuple):
    header: dict[str, Any]
    data_start: int
    file_bytes: int


def _read_json_header(path: Path) -> _JsonHeader:
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            length = _header_length(path, handle.read(8), size)
            text = handle.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return _JsonHeader(parse_json_object(path, text), 8 + length, size)


def _header_length(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        raise CheckpointError(f"{path} is truncated: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: it announces a header of {length} bytes and has {size} in all"
        )
    return length


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {name!r} occurs twice")
    return result


def _entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise _damaged(path, name, "needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, name, f"has the unknown dtype {dtype!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or len(shape) > MAX_DIMENSIONS:
        raise _damaged(path, name, "has a shape or offsets that are no list of whole numbers")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * DTYPE_BITS[dtype]:
        raise _damaged(path, name, f"is {dtype} of shape {shape}, which does not fit its {end - begin} bytes")
    return TensorEntry(file=path, dtype=dtype, shape=tuple(shape), begin=data_start + begin, end=data_start + end)


def _check_offsets(path: Path, entries: Mapping[str, TensorEntry], data_start: int, size: int) -> None:
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            kind = "overlaps another" if entry.begin < position else "leaves a hole before it"
            raise _damaged(path, name, kind)
        position = entry.end
    if position != size:
        raise CheckpointError(f"{path} is truncated or damaged: its tensors end at byte {position}, the file at {size}")


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and not [v for v in values if type(v) is not int or not 0 <= v < 2**63]


def _check_names(path: Path, header: Mapping[str, Any]) -> None:
    """Raise unless every name is text that UTF-8 can hold, which a lone surrogate, written as an escape, is not."""
    try:
        "".join(header).encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path} is damaged: a tensor's name is no UTF-8 text") from error


def _damaged(path: Path, name: str, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: tensor {name!r} {problem}")
