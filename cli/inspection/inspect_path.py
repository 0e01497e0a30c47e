"""Find out what a file or folder is, and say it; nothing but headers and small JSON files is read."""

import re
from collections.abc import Callable
from pathlib import Path

from specmoe.artifact import METADATA_KEY, read_description
from specmoe.checkpoint import CONFIG_FILE
from specmoe.cli.inspection.checkpoint import inspect_checkpoint, inspect_rank_file
from specmoe.cli.inspection.inspection import FileHeader, Inspection, counted
from specmoe.cli.inspection.json_file import inspect_json
from specmoe.cli.inspection.plan import inspect_plan
from specmoe.cli.inspection.profile_header import inspect_profile
from specmoe.errors import ArtifactError, CheckpointError
from specmoe.placement.plan import PLAN_FORMAT
from specmoe.placement.reshard.manifest import MANIFEST_FILE, RANK_FILE_FORMAT
from specmoe.profiler.routing_profile import PROFILE_FORMAT
from specmoe.safetensors_header import read_header, read_metadata

BY_FORMAT: dict[str, Callable[[FileHeader], Inspection]] = {
    PROFILE_FORMAT: inspect_profile,
    PLAN_FORMAT: inspect_plan,
    RANK_FILE_FORMAT: inspect_rank_file,
}
ZIP_MAGIC = b"PK\x03\x04"
# The length of the header in 8 bytes, never past 4 GiB, then the header, a JSON object.
SAFETENSORS_START = re.compile(rb".{4}\0{4}\{", re.DOTALL)
EXPECTED = "a profile, a plan, a topology or a compiled checkpoint was expected"


def inspect_path(path: Path) -> Inspection:
    """What `path` is; raises `ArtifactError`, in one sentence, for what is not specmoe's or is damaged."""
    try:
        if path.is_dir():
            return _inspect_folder(path)
        if path.name == MANIFEST_FILE:
            return inspect_checkpoint(path.parent)
        if path.exists() and not path.is_file():  # to read from a pipe or a device could wait for ever
            raise ArtifactError(f"{path} is neither a file nor a folder; {EXPECTED}")
        start = _first_bytes(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if SAFETENSORS_START.match(start):
        return _inspect_safetensors(path)
    if start.lstrip()[:1] == b"{":
        return inspect_json(path)
    if start.startswith(ZIP_MAGIC):
        raise ArtifactError(
            f"{path} is a zip archive, as .npz traces and engines' .pt dumps are; specmoe import makes a profile of one"
        )
    raise ArtifactError(f"{path} is not a specmoe file: it is neither JSON nor safetensors; {EXPECTED}")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _inspect_folder(path: Path) -> Inspection:
    if (path / MANIFEST_FILE).is_file():
        return inspect_checkpoint(path)
    if (path / CONFIG_FILE).is_file():
        raise ArtifactError(f"{path} is a model checkpoint that is not compiled; specmoe reshard compiles it")
    raise ArtifactError(f"{path} is a folder without {MANIFEST_FILE}; {EXPECTED}")


def _inspect_safetensors(path: Path) -> Inspection:
    try:
        tensors, metadata = read_header(path), read_metadata(path)
    except CheckpointError as error:
        raise ArtifactError(str(error)) from error
    if METADATA_KEY not in metadata:
        count = counted(len(tensors), "tensor")
        raise ArtifactError(f"{path} is a safetensors file of {count} that specmoe did not write; {EXPECTED}")
    description = read_description(path)
    inspect = BY_FORMAT.get(str(description.get("format")))
    if inspect is None:
        known = ", ".join(BY_FORMAT)
        raise ArtifactError(f"{path} is of format {description.get('format')!r}; this version knows {known}")
    try:
        return inspect(FileHeader(path=path, description=description, tensors=tensors, num_bytes=path.stat().st_size))
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
