"""`specmoe reshard`: compile a checkpoint into the layout that a plan asks for."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from specmoe.errors import OutputError, UsageError
from specmoe.model_folder import model_folder
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compilation import plan_compilation
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.human_size import human_size
from specmoe.placement.reshard.manifest import CompiledManifest, Layout
from specmoe.placement.reshard.staging import JOURNAL_FILE, partial_folder


@click.command(name="reshard")
@click.argument("model")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The folder to write; required but for --dry-run."
)
@click.option(
    "--layout",
    type=click.Choice(["ranks", "hf"]),
    default="ranks",
    show_default=True,
    help="ranks: a file per rank, for specmoe. hf: an ordinary checkpoint with renumbered experts, for any engine.",
)
@click.option("--force", is_flag=True, help="Replace an existing compiled checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print the layout and write nothing.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Files written at once (default: two per processor, at most 4)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str,
    plan: Path,
    output: Path | None,
    layout: Layout,
    force: bool,
    dry_run: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Compile the checkpoint MODEL (a folder, or a name on the hub) by PLAN, moving bytes: no weight is cast.

    The output appears whole or not at all. A run that was interrupted goes on where it stopped when it is started
    again with the same arguments.
    """
    if dry_run:
        summary = plan_compilation(model_folder(model), PlacementPlan.load(plan), layout).summary()
        click.echo(json.dumps(summary) if as_json else _describe_layout(summary))
        return
    if output is None:
        raise UsageError("there is no output; give -o OUT, or --dry-run to see the layout")
    progress = sys.stderr.isatty()
    try:
        manifest = reshard(model, plan, output, layout=layout, force=force, progress=progress, jobs=jobs)
    except KeyboardInterrupt as interrupt:
        raise _interrupted(output) or interrupt from None
    click.echo(json.dumps(manifest.to_json()) if as_json else _describe_result(output, manifest))


def _interrupted(output: Path) -> OutputError | None:
    """What an interrupted run leaves to go on from; None where it leaves nothing."""
    kept = partial_folder(Path(os.path.realpath(output)))
    if not (kept / JOURNAL_FILE).is_file():
        return None
    return OutputError(f"interrupted; {kept} is kept, and the same command goes on from there")


def _describe_layout(summary: Mapping[str, Any]) -> str:
    lines = [f"{name}  {human_size(size)}" for name, size in summary["files"].items()]
    lines.append(
        f"in all {human_size(summary['bytes'])} from {human_size(summary['source_bytes'])}, "
        f"family {summary['family']}, {summary['ep_size']} ranks, "
        f"{summary['replica_slots_per_layer']} replica slots in each layer"
    )
    if "bytes_read_per_rank" in summary:
        lines.append(
            f"each rank reads {human_size(summary['shared_bytes'])} of shared tensors and its own experts, "
            f"at most {human_size(max(summary['bytes_read_per_rank']))}, and holds at most "
            f"{human_size(max(summary['weight_bytes_per_rank']))} of weights as they are stored"
        )
        lines.append(_describe_replicas(summary))
    lines.append(f"copied as they are: {', '.join(summary['copied_files']) or 'nothing'}")
    return "\n".join(lines)


def _describe_replicas(summary: Mapping[str, Any]) -> str:
    of_layer = summary["replicated_experts_per_layer"]
    if not any(of_layer):
        return "no expert has a replica"
    return (
        f"{min(of_layer)} to {max(of_layer)} experts of a layer have replicas, {sum(of_layer)} in all, which take "
        f"{human_size(summary['replica_bytes'])}"
    )


def _describe_result(out: Path, manifest: CompiledManifest) -> str:
    total = sum(record.num_bytes for record in manifest.files.values())
    return (
        f"{out}: layout {manifest.layout}, {manifest.ep_size} ranks, {len(manifest.files)} files, {human_size(total)}; "
        f"specmoe verify {out} proves it whole"
    )
