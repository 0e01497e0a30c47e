"""Save and read specmoe's own files: safetensors whose header carries a JSON description under the key `specmoe`."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from specmoe.atomic import atomic_file
from specmoe.errors import ArtifactError

Array = NDArray[Any]
Description = dict[str, Any]

METADATA_KEY = "specmoe"


def write_artifact(path: Path, tensors: Mapping[str, Array], description: Description, *, force: bool = False) -> None:
    """Write `tensors` and `description` (which must name its `format`) to `path`, whole or not at all."""
    metadata = {METADATA_KEY: canonical_json(description)}
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    with atomic_file(path, force=force) as temporary:
        temporary.write_bytes(save(contiguous, metadata=metadata))


def read_artifact(path: Path, expected_format: str) -> tuple[dict[str, Array], Description]:
    """Read a file written by `write_artifact`; raises `ArtifactError` unless it is of `expected_format`.

    Offsets and sizes are checked by the safetensors reader before anything is allocated.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file; a {expected_format} file was expected")
    try:
        with safe_open(path, framework="numpy") as handle:
            description = _description(path, handle.metadata(), expected_format)
            return {name: handle.get_tensor(name) for name in handle.keys()}, description  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as a safetensors file: {error}") from error
    except (TypeError, AttributeError) as error:  # how the reader says that NumPy lacks a dtype, bfloat16 for one
        raise ArtifactError(f"{path} holds a tensor of a dtype that no {expected_format} file has: {error}") from error


def read_description(path: Path) -> Description:
    """Read only the description of any specmoe file, whatever its format."""
    try:
        with safe_open(path, framework="numpy") as handle:
            return _parse(path, handle.metadata())
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as a safetensors file: {error}") from error


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(tensors: Mapping[str, Array], description: Description) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors` and over `description`, as hexadecimal."""
    state = hashlib.sha256(canonical_json(description).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        state.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def _description(path: Path, metadata: dict[str, str] | None, expected_format: str) -> Description:
    description = _parse(path, metadata)
    found = description.get("format")
    if found != expected_format:
        raise ArtifactError(f"{path} is of format {found!r}, {expected_format!r} was expected")
    return description


def _parse(path: Path, metadata: dict[str, str] | None) -> Description:
    if not metadata or METADATA_KEY not in metadata:
        raise ArtifactError(f"{path} is not a specmoe file: its header has no {METADATA_KEY!r} entry")
    try:
        description = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} has a damaged description in its header: {error}") from error
    if not isinstance(description, dict):
        raise ArtifactError(f"{path} has a description that is not a JSON object")
    return description
