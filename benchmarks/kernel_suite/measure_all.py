"""The command: measure every shape and batch size, print the tables, write them."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import torch
from gpu_timer import copy_bandwidth
from inputs import SHAPES, Shape
from operations import measure_shape
from report import markdown

from specmoe.kernels.launch.tune import tune as tune_moves

RESULTS = Path(__file__).parents[1] / "results"
# In a dry run every shape is this one: all of the code, in seconds, on a CPU.
TINY = Shape(num_experts=8, top_k=2, hidden_size=32, intermediate_size=16)


def split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def measure(
    shape: Shape, tokens: Sequence[int], ranks: int, device: torch.device, *, with_layer: bool
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The records of one model's shape, batch size by batch size: "operations", then "layer"."""
    for count in tokens:
        click.echo(f"{count} tokens", err=True)
        yield "operations", list(measure_shape(shape, count, ranks, device))
    if not with_layer:
        return
    from layer import make_experts, measure_layer

    experts = make_experts(shape, device)
    for count in tokens:
        click.echo(f"whole layer, {count} tokens", err=True)
        yield "layer", list(measure_layer(shape, experts, count, ranks))


def about(device: torch.device, ranks: int) -> dict[str, Any]:
    """What must be known to read the figures."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "no device, a dry run in Triton's interpreter",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {package: _version(package) for package in ("specmoe", "torch", "triton", "transformers")}
        | {"cuda": torch.version.cuda},
        "command": shlex.join(["python", *sys.argv]),
        "ranks": ranks,
        "copy_tb_per_s": copy_bandwidth(device),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed, from its source folder"


def write(record: dict[str, Any], stem: Path) -> None:
    stem.parent.mkdir(exist_ok=True, parents=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(record), encoding="utf-8")


@click.command()
@click.option("--tokens", default="1,32,128,512,4096,16384", show_default=True, help="Batch sizes.")
@click.option("--shapes", default=",".join(SHAPES), show_default=True, help="Models.")
@click.option("--ranks", default=8, show_default=True, help="Ranks that share the experts.")
@click.option("--layer/--no-layer", default=True, help="Also the whole layer against transformers.")
@click.option("--tune/--no-tune", default=True, help="First choose the launch shapes for this device, and keep them.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, help="The folder for the results.")
@click.option("--dry-run", is_flag=True, help="Tiny shapes on the CPU: does it all work? TRITON_INTERPRET=1 is needed.")
def main(tokens: str, shapes: str, ranks: int, layer: bool, tune: bool, out: Path, dry_run: bool) -> None:
    """Measure the kernels on the current CUDA device."""
    unknown = sorted(set(split(shapes)) - set(SHAPES))
    if unknown:
        raise click.UsageError(f"unknown shapes {', '.join(unknown)}; known are {', '.join(SHAPES)}")
    if not dry_run and not torch.cuda.is_available():
        raise click.ClickException("the kernels' speed is measured on a CUDA device, and this machine has none")
    device = torch.device("cpu" if dry_run else "cuda")
    record: dict[str, Any] = {"about": about(device, ranks), "shapes": []}
    stem = out / f"kernels-{'dry-run' if dry_run else torch.cuda.get_device_name().replace(' ', '-')}"
    for name in split(shapes):
        click.echo(name, err=True)
        shape = TINY if dry_run else SHAPES[name]
        if tune and not dry_run:
            tune_moves(shape.hidden_size, shape.top_k, torch.bfloat16, device)
        counts = [int(count) for count in split(tokens)]
        found: dict[str, Any] = {"name": name, "operations": [], "layer": []}
        record["shapes"].append(found)
        for part, records in measure(shape, counts, ranks, device, with_layer=layer):
            found[part] += records
            # After each: a run that is cut off leaves what it has.
            write(record, stem)
    click.echo(markdown(record))
