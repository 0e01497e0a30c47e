"""Check a compiled folder against its own manifest: files, sizes, hashes, plan, and the headers of rank files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from specmoe.artifact import METADATA_KEY
from specmoe.checkpoint import safe_file
from specmoe.errors import ArtifactError, CheckpointError, SpecmoeError
from specmoe.hashing import hash_file
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.manifest import PLAN_FILE, RANK_FILE_FORMAT, CompiledManifest
from specmoe.placement.reshard.progress import Report
from specmoe.placement.reshard.verify_report import VerifyCheck
from specmoe.safetensors_header import read_metadata


def check_files(out: Path, manifest: CompiledManifest) -> VerifyCheck:
    """The folder holds exactly the manifest's files, each of its size."""
    problems = [f"{name} is not in the manifest" for name in manifest.unlisted_files(out)]
    for name, record in sorted(manifest.files.items()):
        try:
            size = safe_file(out, name).stat().st_size
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if size != record.num_bytes:
            problems.append(f"{name} has {size} bytes, {record.num_bytes} were expected")
    total = sum(record.num_bytes for record in manifest.files.values())
    proven = f"the folder holds the {len(manifest.files)} files of the manifest, {total} bytes, and no other"
    return VerifyCheck(name="files", proven=proven, problems=tuple(problems))


def check_hashes(out: Path, manifest: CompiledManifest, report: Report) -> VerifyCheck:
    """Every file that is there has the manifest's SHA-256."""
    problems = [
        f"{name} was altered or damaged: its SHA-256 is not the manifest's"
        for name, record in sorted(manifest.files.items())
        if (out / name).is_file() and hash_file(out / name, report) != record.sha256
    ]
    proven = f"the SHA-256 of {len(manifest.files)} files is the manifest's"
    return VerifyCheck(name="hashes", proven=proven, problems=tuple(problems))


def check_plan(out: Path, manifest: CompiledManifest) -> tuple[PlacementPlan | None, VerifyCheck]:
    """The plan can be read, is legal, and is the one that the checkpoint was compiled with."""
    proven = "the plan is legal and the one that this checkpoint was compiled with"
    try:
        plan = PlacementPlan.load(out / PLAN_FILE)
    except SpecmoeError as error:
        return None, VerifyCheck(name="plan", proven=proven, problems=(str(error),))
    problems = []
    if plan.digest != manifest.plan_digest:
        problems.append(f"{PLAN_FILE} is not the plan that this checkpoint was compiled with")
    if plan.ep_size != manifest.ep_size:
        problems.append(f"the plan is for {plan.ep_size} ranks, the checkpoint for {manifest.ep_size}")
    if plan.model_fingerprint not in (None, manifest.model_fingerprint):
        problems.append("the plan is for another model than the one that was compiled")
    if manifest.layout == "ranks" and plan.num_layers != len(manifest.expert_modules):
        problems.append(f"the plan has {plan.num_layers} layers, the checkpoint {len(manifest.expert_modules)}")
    return plan, VerifyCheck(name="plan", proven=proven, problems=tuple(problems))


def check_rank_files(out: Path, manifest: CompiledManifest) -> VerifyCheck:
    """Each rank file's header names its rank, this plan and this model."""
    expected = {"plan_digest": manifest.plan_digest, "model_fingerprint": manifest.model_fingerprint}
    problems: list[str] = []
    for rank, name in enumerate(manifest.rank_files):
        wanted = {"format": RANK_FILE_FORMAT, "rank": rank, "ep_size": manifest.ep_size, **expected}
        try:
            problems += _differences(name, rank_description(out / name), wanted)
        except SpecmoeError as error:
            problems.append(str(error))
    proven = f"{len(manifest.rank_files)} rank files name their rank, this plan and this model"
    return VerifyCheck(name="rank files", proven=proven, problems=tuple(problems))


def rank_description(path: Path) -> dict[str, object]:
    """What a rank file's header says of itself; raises `ArtifactError` when it says nothing that can be read."""
    text = read_metadata(path).get(METADATA_KEY, "")
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a rank file: its header has no {METADATA_KEY!r} entry") from error
    if not isinstance(description, dict):
        raise ArtifactError(f"{path} has a description that is not a JSON object")
    return description


def _differences(name: str, found: Mapping[str, object], wanted: Mapping[str, object]) -> Iterable[str]:
    return (
        f"{name} states {key} {found.get(key)!r}, {value!r} was expected"
        for key, value in wanted.items()
        if found.get(key) != value
    )
