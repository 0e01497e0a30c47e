"""Prove a compiled checkpoint whole by its own manifest and, with the source at hand, byte by byte.

Nothing here runs the model; `specmoe.runtime.verify` adds a comparison of logits.
"""

from pathlib import Path

from specmoe.checkpoint import open_checkpoint
from specmoe.errors import SpecmoeError
from specmoe.hashing import hash_file
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compilation import check_fit
from specmoe.placement.reshard.hf_layout import check_expressible
from specmoe.placement.reshard.manifest import CompiledManifest
from specmoe.placement.reshard.moe_model import MoeModel
from specmoe.placement.reshard.progress import Report, byte_progress
from specmoe.placement.reshard.sidecars import find_sidecars
from specmoe.placement.reshard.understand import understand
from specmoe.placement.reshard.verify_folder import check_files, check_hashes, check_plan, check_rank_files
from specmoe.placement.reshard.verify_origin import check_origin, read_outputs
from specmoe.placement.reshard.verify_report import VerifyCheck, VerifyReport
from specmoe.routing_config import num_expert_groups


def verify_files(out: Path | str, against: Path | str | None = None, *, progress: bool = False) -> VerifyReport:
    """Check the compiled checkpoint `out`: files, hashes, plan, and with `against`, its source, every byte's origin.

    Raises `ArtifactError` when `out` is no compiled checkpoint and `CheckpointError` when `against` is no checkpoint;
    whatever is wrong with the files of `out` is a problem in the report.
    """
    out = Path(out)
    manifest = CompiledManifest.load(out)
    model = None if against is None else understand(open_checkpoint(Path(against)))
    total = sum(record.num_bytes for record in manifest.files.values()) * (1 if model is None else 2)
    with byte_progress("verify", total, shown=progress) as report:
        checks = [check_files(out, manifest), check_hashes(out, manifest, report)]
        plan, plan_check = check_plan(out, manifest)
        checks.append(plan_check)
        checks.append(_check_index(out, plan) if manifest.layout == "hf" else check_rank_files(out, manifest))
        if model is not None:
            checks += _check_against(out, manifest, plan if plan_check.passed else None, model, report)
    return VerifyReport(out=out, layout=manifest.layout, checks=tuple(checks))


def _check_index(out: Path, plan: PlacementPlan | None) -> VerifyCheck:
    """Layout hf: an ordinary checkpoint that the plan can be expressed in."""
    proven = "index and headers agree, and the renumbering keeps the model's expert groups"
    try:
        groups = num_expert_groups(open_checkpoint(out).config, str(out))
        if plan is not None:
            check_expressible(plan, groups)
    except SpecmoeError as error:
        return VerifyCheck(name="index", proven=proven, problems=(str(error),))
    return VerifyCheck(name="index", proven=proven)


def _check_against(
    out: Path, manifest: CompiledManifest, plan: PlacementPlan | None, model: MoeModel, report: Report
) -> list[VerifyCheck]:
    """The checks that need the source; byte by byte only under a plan that was found right."""
    source = model.checkpoint
    problems = []
    if source.fingerprint != manifest.model_fingerprint:
        problems.append(f"this checkpoint was compiled from another model than {source.path}")
    for name in find_sidecars(source.path):
        if not _same_file(out / name, source.path / name):
            problems.append(f"{name} is not the source's")
    checks = [VerifyCheck(name="source", proven="model and copied files are the source's", problems=tuple(problems))]
    if plan is None:
        return checks
    try:
        check_fit(model, plan)
        return checks + check_origin(model, plan, manifest, read_outputs(out, manifest), report)
    except SpecmoeError as error:
        return [*checks, VerifyCheck(name="origin", proven="every byte comes from the source", problems=(str(error),))]


def _same_file(first: Path, second: Path) -> bool:
    return first.is_file() and hash_file(first) == hash_file(second)
