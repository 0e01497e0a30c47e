"""Open a Hugging Face checkpoint folder: its config and where every tensor's bytes lie, without reading a weight.

Only safetensors, in one file or sharded. Nothing that a file says is believed before it is checked: names in the
index stay inside the folder, shards and index agree, and each header passes `safetensors_header`.

Symbolic links. The hub's cache keeps a snapshot as links to `../../blobs/HASH`. A link is followed when it leads into
the folder itself or from a `snapshots/REVISION` folder into its `blobs` sibling, and refused otherwise: a folder from
a stranger must not make specmoe read, and copy into the output, a file from elsewhere on this machine.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from specmoe.errors import CheckpointError
from specmoe.read_ahead import will_read
from specmoe.safetensors_header import TensorEntry, parse_json_object, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"

MAX_JSON_BYTES = 512 * 2**20
FINGERPRINT_BYTES = 4096
# So many tensors' first bytes are asked for at once: one by one, each would wait for the disk.
_HEADS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder whose structure has been checked: `config` as parsed, `tensors` by name."""

    path: Path
    config: dict[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorEntry] = field(repr=False)

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, each once, by name."""
        return tuple(sorted({entry.file for entry in self.tensors.values()}))

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.num_bytes for entry in self.tensors.values())

    def in_file_order(self, names: Iterable[str]) -> list[str]:
        """`names`, sorted by the place of their bytes: file by file, from its start."""
        wanted = frozenset(names)
        return [name for name in self._all_in_file_order if name in wanted]

    @cached_property
    def _all_in_file_order(self) -> list[str]:
        order = {path: number for number, path in enumerate(self.files)}
        return sorted(self.tensors, key=lambda name: (order[self.tensors[name].file], self.tensors[name].begin, name))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, hexadecimal, over the tensors' sorted names, dtypes, shapes and first 4 KiB.

        It does not depend on how tensors are spread over files, so a re-sharded copy is the same model. It
        distinguishes models; it does not detect a byte changed past the first 4 KiB of a tensor (`verify` does).
        """
        heads = self._hash_heads()
        state = hashlib.sha256(b"specmoe.model/1")
        for name in sorted(self.tensors):
            entry = self.tensors[name]
            state.update(f"\0{name}\0{entry.dtype}\0{list(entry.shape)}\0".encode())
            state.update(heads[name])
        return state.hexdigest()

    def _hash_heads(self) -> dict[str, bytes]:
        """SHA-256 of each tensor's first bytes, read file by file."""
        heads: dict[str, bytes] = {}
        for path, names in groupby(self.in_file_order(self.tensors), key=lambda name: self.tensors[name].file):
            try:
                with path.open("rb", buffering=0) as handle:
                    heads |= self._hash_heads_of(handle.fileno(), list(names))
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        return heads

    def _hash_heads_of(self, descriptor: int, names: Sequence[str]) -> dict[str, bytes]:
        places = {
            name: (self.tensors[name].begin, min(FINGERPRINT_BYTES, self.tensors[name].num_bytes)) for name in names
        }
        heads: dict[str, bytes] = {}
        for start in range(0, len(names), _HEADS_AT_ONCE):
            batch = names[start : start + _HEADS_AT_ONCE]
            for name in batch:
                will_read(descriptor, *places[name])
            for name in batch:
                begin, size = places[name]
                heads[name] = hashlib.sha256(os.pread(descriptor, size, begin)).digest()
        return heads


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint folder `path`; raises `CheckpointError` for one that is absent, damaged or unsafe."""
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; the folder of a Hugging Face checkpoint was expected")
    if not os.path.lexists(path / CONFIG_FILE):
        raise CheckpointError(f"{path} is not a Hugging Face checkpoint: it has no {CONFIG_FILE}")
    config = _read_json(safe_file(path, CONFIG_FILE))
    weight_map = _weight_map(path)
    indexed = None if weight_map is None else _names_by_file(weight_map)
    tensors: dict[str, TensorEntry] = {}
    for name in [SINGLE_FILE] if indexed is None else sorted(indexed):
        header = read_header(safe_file(path, name))
        if indexed is not None:
            _check_against_index(path / name, header, indexed[name])
        tensors.update(header)
    if not tensors:
        raise CheckpointError(f"{path} is not a model checkpoint: its safetensors files hold no tensor")
    return Checkpoint(path=path, config=config, tensors=tensors)


def safe_file(folder: Path, name: str) -> Path:
    """`folder / name`; raises `CheckpointError` unless it is a regular file that may be read from there."""
    path = folder / name
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} is missing; copy or download the checkpoint again")
    root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    allowed = target.is_relative_to(root)
    if root.parent.name == "snapshots":
        allowed = allowed or target.parent == root.parent.parent / "blobs"
    if not allowed:
        raise CheckpointError(
            f"{path} is a link that leads out of the checkpoint, to {target}; put the file itself there"
        )
    if not target.is_file():
        raise CheckpointError(f"{path} is not a regular file")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes, too large for a JSON file")
        return parse_json_object(path, path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _weight_map(path: Path) -> dict[str, str] | None:
    """Tensor name -> file name from the index, or None for a checkpoint in a single file."""
    has_index, has_single = (os.path.lexists(path / name) for name in (INDEX_FILE, SINGLE_FILE))
    if not has_index and not has_single:
        raise _no_weights(path)
    if not has_index:
        return None
    weight_map = _read_json(safe_file(path, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{path / INDEX_FILE} is damaged: its weight_map must map tensor names to file names")
    for file in set(weight_map.values()):
        _check_shard_name(path / INDEX_FILE, file)
    if has_single and set(weight_map.values()) != {SINGLE_FILE}:
        raise CheckpointError(f"{path} has both {SINGLE_FILE} and {INDEX_FILE}, remove the one that is out of date")
    return weight_map


def _no_weights(path: Path) -> CheckpointError:
    pickles = sorted(
        file.name for pattern in ("*.bin", "*.bin.index.json", "*.pt", "*.pth") for file in path.glob(pattern)
    )
    if pickles:
        return CheckpointError(
            f"{path} holds pickled weights ({pickles[0]}), which can run code when read; convert them to safetensors"
        )
    return CheckpointError(f"{path} has no weights: {SINGLE_FILE} or {INDEX_FILE} was expected")


def _check_shard_name(index: Path, file: str) -> None:
    if not file or "/" in file or "\\" in file or not file.isprintable():
        raise CheckpointError(f"{index} names the file {file!r}; a plain file name without folders was expected")
    if not file.endswith(".safetensors"):
        raise CheckpointError(f"{index} names the file {file!r}; only .safetensors files are read")


def _names_by_file(weight_map: Mapping[str, str]) -> dict[str, set[str]]:
    by_file: dict[str, set[str]] = defaultdict(set)
    for name, file in weight_map.items():
        by_file[file].add(name)
    return by_file


def _check_against_index(path: Path, header: Mapping[str, TensorEntry], indexed: AbstractSet[str]) -> None:
    if indexed == header.keys():
        return
    for name in sorted(indexed - header.keys()):
        raise CheckpointError(f"{path} has no tensor {name!r}, which the index places there")
    surplus = sorted(header.keys() - indexed)[0]
    raise CheckpointError(f"{path} has a tensor {surplus!r} that the index does not place there")
