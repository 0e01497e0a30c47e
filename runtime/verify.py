"""Prove a compiled checkpoint whole and, with its source at hand, that the compiled model computes the same."""

from pathlib import Path

from specmoe.model_folder import model_folder
from specmoe.placement.reshard.verify_files import verify_files
from specmoe.placement.reshard.verify_report import VerifyReport


def verify(out: Path | str, against: Path | str | None = None, *, progress: bool = False) -> VerifyReport:
    """Check the compiled checkpoint `out`; with `against`, the checkpoint that it was made from, also every byte's
    origin and the logits.

    Logits are compared in float32 on the CPU, one process holding all ranks, where the model fits in memory; the
    report says so where it does not. Raises `ArtifactError` when `out` is no compiled checkpoint and `CheckpointError`
    when `against` is no checkpoint; whatever else is wrong is a problem in the report.
    """
    source = None if against is None else model_folder(against)
    report = verify_files(out, source, progress=progress)
    if source is None or not report.passed:
        return report
    # Imports torch, which checking the files alone does without.
    from specmoe.runtime.compare_logits import compare_logits

    return report.with_check(compare_logits(Path(out), source))
