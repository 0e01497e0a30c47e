"""The command: measure every shape and batch size, print the tables, write them."""

import json
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from gpu_timer import copy_bandwidth
from inputs import SHAPES
from operations import measure_shape
from report import markdown

RESULTS = Path(__file__).parents[1] / "results"


def split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def measure(name: str, tokens: list[int], ranks: int, *, with_layer: bool) -> dict[str, Any]:
    """Every record of one model's shape."""
    shape = SHAPES[name]
    operations: list[dict[str, Any]] = []
    layer: list[dict[str, Any]] = []
    for count in tokens:
        click.echo(f"{name}, {count} tokens", err=True)
        operations += measure_shape(shape, count, ranks)
    if with_layer:
        from layer import make_experts, measure_layer

        experts = make_experts(shape, torch.device("cuda"))
        for count in tokens:
            click.echo(f"{name}, whole layer, {count} tokens", err=True)
            layer += measure_layer(shape, experts, count, ranks)
    return {"name": name, "operations": operations, "layer": layer}


@click.command()
@click.option("--tokens", default="1,32,128,512,4096,16384", show_default=True, help="Batch sizes.")
@click.option("--shapes", default=",".join(SHAPES), show_default=True, help="Models.")
@click.option("--ranks", default=8, show_default=True, help="Ranks that share the experts.")
@click.option("--layer/--no-layer", default=True, help="Also the whole layer against transformers.")
def main(tokens: str, shapes: str, ranks: int, layer: bool) -> None:
    """Measure the kernels on the current CUDA device."""
    unknown = sorted(set(split(shapes)) - set(SHAPES))
    if unknown:
        raise click.UsageError(f"unknown shapes {', '.join(unknown)}; known are {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        raise click.ClickException("the kernels' speed is measured on a CUDA device, and this machine has none")
    device = torch.cuda.get_device_name()
    about = {
        "device": device,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": {package: version(package) for package in ("specmoe", "torch", "triton", "transformers")}
        | {"cuda": torch.version.cuda},
        "command": shlex.join(["python", *sys.argv]),
        "ranks": ranks,
        "copy_tb_per_s": copy_bandwidth(),
    }
    counts = [int(count) for count in split(tokens)]
    record = {"about": about, "shapes": [measure(name, counts, ranks, with_layer=layer) for name in split(shapes)]}
    stem = RESULTS / f"kernels-{device.replace(' ', '-')}"
    stem.parent.mkdir(exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(markdown(record), encoding="utf-8")
    click.echo(markdown(record))
