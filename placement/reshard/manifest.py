"""The manifest of a compiled checkpoint, `OUT/specmoe.json`: what it was made from and every file's size and hash.

What lies in a folder of layout `ranks`:

- `specmoe.json`, the manifest, written last: a folder without it is not a compiled checkpoint.
- `plan.safetensors`; `config.json`, tokenizer and generation files with their bytes as they were.
- `shared-NNNNN-of-NNNNN.safetensors`: every tensor that is not a routed expert's, under the name and with the bytes of
  the source (routers are not permuted: expert ids stay logical).
- `experts-rank-RRRRR-of-RRRRR.safetensors`: one rank's slots. Tensor names are `expert_modules[row]` of the plan's row,
  a dot, and a name that says the contents; dimension 0 is always the rank's slots in the plan's order.
  * `expert_format` "fused": transformers 5's parameters of an experts module, bytes ready for use:
    `gate_up_proj` [S, 2I, H] (gate rows, then up rows) and `down_proj` [S, H, I]; for a family that publishes its
    experts fused, its own tensors (gpt-oss: `gate_up_proj` [S, H, 2I], `gate_up_proj_bias` [S, 2I], …).
  * `expert_format` "stacked" (quantized experts, whose pieces must not be concatenated): every source suffix of its
    own, stacked by slot, as `gate_proj.weight_packed` [S, …], `gate_proj.weight_scale` [S, …], ….
  The header's metadata names the rank, the plan and the model (`RANK_FILE_FORMAT`), so that a swapped file is noticed
  without hashing it.

A folder of layout `hf` is an ordinary checkpoint (`model-NNNNN-of-NNNNN.safetensors` and its index) that also carries
the manifest and the plan; it has no `expert_modules`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from specmoe.artifact import canonical_json
from specmoe.atomic import sync
from specmoe.checkpoint import CONFIG_FILE
from specmoe.errors import ArtifactError, CheckpointError, UsageError
from specmoe.fields import entry
from specmoe.safetensors_header import parse_json_object

MANIFEST_FORMAT = "specmoe.checkpoint/1"
MANIFEST_FILE = "specmoe.json"
PLAN_FILE = "plan.safetensors"
RANK_FILE_FORMAT = "specmoe.experts/1"
MAX_RANKS = 99_999  # five digits in a rank file's name

Layout = Literal["ranks", "hf"]
ExpertFormat = Literal["fused", "stacked"]

_WEIGHT_SUFFIXES = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256 (hexadecimal) of one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CompiledManifest:
    """What a compiled checkpoint is: `files` holds every file of the folder but the manifest, by relative name.

    `expert_modules` is the prefix of the expert tensors in the rank files, one per row of the plan (layout `ranks`
    only, otherwise empty), such as "model.layers.3.mlp.experts".
    """

    layout: Layout
    family: str
    model_fingerprint: str
    plan_digest: str
    ep_size: int
    expert_format: ExpertFormat
    expert_modules: tuple[str, ...]
    files: Mapping[str, FileRecord]

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ArtifactError(f"the layout is {self.layout!r}, 'ranks' or 'hf' was expected")
        if self.expert_format not in get_args(ExpertFormat):
            raise ArtifactError(f"the expert format is {self.expert_format!r}, 'fused' or 'stacked' was expected")
        if not 1 <= self.ep_size <= MAX_RANKS:
            raise ArtifactError(f"ep_size is {self.ep_size}, 1 to {MAX_RANKS} was expected")
        for name in self.files:
            check_relative_name(name)
        needed = [PLAN_FILE, CONFIG_FILE, *self.rank_files]
        for name in needed:
            if name not in self.files:
                raise ArtifactError(f"the manifest does not list {name}")

    @property
    def rank_files(self) -> tuple[str, ...]:
        """The rank files' names, by rank; none in layout `hf`."""
        if self.layout == "hf":
            return ()
        return tuple(rank_file_name(rank, self.ep_size) for rank in range(self.ep_size))

    @property
    def shared_files(self) -> tuple[str, ...]:
        """The names of the safetensors files that every rank reads: shared tensors, or all tensors in layout `hf`."""
        own = {PLAN_FILE, *self.rank_files}
        return tuple(sorted(name for name in self.files if name.endswith(".safetensors") and name not in own))

    @cached_property
    def contents_digest(self) -> str:
        """SHA-256, as hexadecimal, over all that the manifest says: two folders of the same model and plan share it."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    def rank_file(self, rank: int) -> str:
        """The name of `rank`'s file; raises `UsageError` in layout `hf` or for a rank that is not there."""
        if self.layout == "hf":
            raise UsageError("a checkpoint of layout 'hf' has no rank files; compile it with --layout ranks")
        if not 0 <= rank < self.ep_size:
            raise UsageError(f"rank is {rank}, 0 to {self.ep_size - 1} was expected")
        return self.rank_files[rank]

    def unlisted_files(self, out: Path) -> list[str]:
        """Names, sorted, of what lies in the folder `out` without being listed: loaders might read it.

        What the hub and version control add is no part of the model: dot files and folders, and a README.md.
        """
        present = {
            path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_symlink() or not path.is_dir()
        }
        return sorted(name for name in present - self.files.keys() - {MANIFEST_FILE} if not _is_of_hub(name))

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the manifest file."""
        return {
            "format": MANIFEST_FORMAT,
            "layout": self.layout,
            "family": self.family,
            "model_fingerprint": self.model_fingerprint,
            "plan_digest": self.plan_digest,
            "ep_size": self.ep_size,
            "expert_format": self.expert_format,
            "expert_modules": list(self.expert_modules),
            "files": {
                name: {"bytes": record.num_bytes, "sha256": record.sha256}
                for name, record in sorted(self.files.items())
            },
        }

    def save(self, out: Path) -> None:
        """Write `out/specmoe.json`, synced; the caller makes the folder appear whole."""
        path = out / MANIFEST_FILE
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        sync(path)

    @classmethod
    def load(cls, out: Path) -> "CompiledManifest":
        """Read and check `out/specmoe.json`; raises `ArtifactError` for a folder that is no compiled checkpoint."""
        path = out / MANIFEST_FILE
        if not path.is_file():
            raise ArtifactError(f"{out} is not a compiled checkpoint: it has no {MANIFEST_FILE}; run specmoe reshard")
        value = _read(path)
        try:
            return _from_json(value)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error


def rank_file_name(rank: int, ep_size: int) -> str:
    """The name of a rank's file: `experts-rank-RRRRR-of-RRRRR.safetensors`, counted from 0."""
    return f"experts-rank-{rank:05d}-of-{ep_size:05d}.safetensors"


def _is_of_hub(name: str) -> bool:
    """Whether `name` is what the hub puts beside a model, by a name that is not one of weights."""
    is_hidden = any(part.startswith(".") for part in name.split("/"))
    return (is_hidden or name == "README.md") and not name.endswith(_WEIGHT_SUFFIXES)


def check_relative_name(name: str) -> None:
    """Raise `ArtifactError` unless `name` is a relative path that stays inside its folder."""
    parts = name.split("/")
    safe = name.isprintable() and "\\" not in name and not any(part in ("", ".", "..") for part in parts)
    if not safe or PurePosixPath(name).is_absolute() or name == MANIFEST_FILE:
        raise ArtifactError(f"the file name {name!r} is not a relative path inside the folder")


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ArtifactError(f"{path} is too large for a manifest")
        return parse_json_object(path, path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except CheckpointError as error:
        raise ArtifactError(str(error)) from error


def _from_json(value: dict[str, Any]) -> CompiledManifest:
    if value.get("format") != MANIFEST_FORMAT:
        raise ArtifactError(f"the format is {value.get('format')!r}, {MANIFEST_FORMAT!r} was expected")
    modules = entry(value, "expert_modules", list)
    if not all(isinstance(module, str) for module in modules):
        raise ArtifactError("expert_modules must be a list of names")
    scalars: dict[str, Any] = {
        name: entry(value, name, str)
        for name in ("layout", "family", "model_fingerprint", "plan_digest", "expert_format")
    }
    return CompiledManifest(
        **scalars,
        ep_size=entry(value, "ep_size", int),
        expert_modules=tuple(modules),
        files={name: _record(name, item) for name, item in entry(value, "files", dict).items()},
    )


def _record(name: str, value: Any) -> FileRecord:
    if not isinstance(value, dict):
        raise ArtifactError(f"the entry of {name!r} is not an object")
    num_bytes, sha256 = entry(value, "bytes", int), entry(value, "sha256", str)
    if num_bytes < 0 or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ArtifactError(f"the entry of {name!r} has an impossible size or hash")
    return FileRecord(num_bytes=num_bytes, sha256=sha256)
