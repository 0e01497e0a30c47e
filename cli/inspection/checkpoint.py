"""A compiled checkpoint from its manifest and its plan's header, and one rank's file from its own."""

from pathlib import Path
from typing import Any

from specmoe.artifact import read_description
from specmoe.cli.inspection.inspection import FileHeader, Inspection, counted, size
from specmoe.cli.inspection.plan import plan_facts, plan_lines
from specmoe.errors import ArtifactError, CheckpointError
from specmoe.fields import entry
from specmoe.placement.reshard.manifest import MANIFEST_FORMAT, PLAN_FILE, CompiledManifest
from specmoe.safetensors_header import read_header

LAYOUTS = {
    "ranks": "ranks: a file for each rank, for specmoe.load and specmoe generate",
    "hf": "hf: a Hugging Face checkpoint with renumbered experts, for any engine",
}


def inspect_checkpoint(folder: Path) -> Inspection:
    """The checkpoint in `folder`: every listed file is looked for and its size compared, none is hashed."""
    manifest = CompiledManifest.load(folder)
    wrong = _wrong_files(folder, manifest)
    plan = plan_facts(_plan_header(folder))
    num_bytes = sum(record.num_bytes for record in manifest.files.values())
    facts: dict[str, Any] = {
        "layout": manifest.layout,
        "family": manifest.family,
        "expert_format": manifest.expert_format,
        "ep_size": manifest.ep_size,
        "num_files": len(manifest.files),
        "missing_or_of_wrong_size": wrong,
        "rank_file_bytes": [manifest.files[name].num_bytes for name in manifest.rank_files],
        "plan_digest": manifest.plan_digest,
        "model_fingerprint": manifest.model_fingerprint,
        "plan": plan,
    }
    state = f"missing or of another size: {', '.join(wrong)}" if wrong else "all there, with their sizes"
    lines = [
        ("layout", LAYOUTS[manifest.layout]),
        ("family", f"{manifest.family}, experts {manifest.expert_format}"),
        ("files", f"{counted(len(manifest.files), 'file')}, {state}; specmoe verify checks their contents"),
    ]
    if manifest.rank_files:
        largest = max(facts["rank_file_bytes"])
        lines.append(("on each rank", f"up to {size(largest)} of experts beside {size(_shared_bytes(manifest))}"))
    return Inspection(
        path=folder,
        kind="compiled checkpoint",
        format=MANIFEST_FORMAT,
        num_bytes=num_bytes,
        facts=facts,
        lines=[
            *lines,
            *plan_lines(plan),
            ("plan's digest", manifest.plan_digest),
            ("made from model", manifest.model_fingerprint),
        ],
    )


def inspect_rank_file(header: FileHeader) -> Inspection:
    """One rank's experts."""
    rank, ep_size = entry(header.description, "rank", int), entry(header.description, "ep_size", int)
    names = {name: entry(header.description, name, str) for name in ("plan_digest", "model_fingerprint")}
    return Inspection(
        path=header.path,
        kind="file of one rank's experts",
        format=str(header.description["format"]),
        num_bytes=header.num_bytes,
        facts={"rank": rank, "ep_size": ep_size, "num_tensors": len(header.tensors), **names},
        lines=[
            ("rank", f"{rank} of {ep_size} (counted from 0)"),
            ("holds", counted(len(header.tensors), "tensor")),
            ("plan's digest", names["plan_digest"]),
            ("of the model", names["model_fingerprint"]),
        ],
    )


def _wrong_files(folder: Path, manifest: CompiledManifest) -> list[str]:
    found = {name: folder / name for name in manifest.files}
    return sorted(
        name
        for name, path in found.items()
        if not path.is_file() or path.stat().st_size != manifest.files[name].num_bytes
    )


def _shared_bytes(manifest: CompiledManifest) -> int:
    return sum(manifest.files[name].num_bytes for name in manifest.shared_files)


def _plan_header(folder: Path) -> FileHeader:
    path = folder / PLAN_FILE
    try:
        tensors = read_header(path)
    except CheckpointError as error:
        raise ArtifactError(str(error)) from error
    return FileHeader(path=path, description=read_description(path), tensors=tensors, num_bytes=path.stat().st_size)
