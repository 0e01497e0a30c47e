"""How `solve` grows with tokens, layers, experts and ranks, on synthetic routing.

python benchmarks/solver_scaling.py
python benchmarks/solver_scaling.py --sweeps tokens,layers --attention tp
python benchmarks/solver_scaling.py --shrink 20 --models "" --name trial

One number of a small case changes at a time; the slope of CPU time over it, both as logarithms, is the exponent of
growth. Sweeps are without a lower bound, whose work is the same for any size. With them the sizes of gpt-oss-20b and
DeepSeek-V3, bound included. Writes benchmarks/results/NAME.{md,json,svg} after every case.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from solver_suite.growth_plot import plot_growth
from solver_suite.solve_case import Case, Measured, case_from_json, measure_apart, measure_here
from solver_suite.synthetic import TraceSize

from specmoe.placement.plan import Attention

RESULTS = Path(__file__).parent / "results"
SMALL = TraceSize(layers=4, experts=64, top_k=8, tokens=20_000, vocabulary=50_000)
SMALL_RANKS = 8
GROWN = {
    "tokens": (10_000, 20_000, 40_000, 80_000),
    "layers": (2, 4, 8, 16),
    "experts": (32, 64, 128, 256),
    "ranks": (4, 8, 16, 32),
}
GPT_OSS = TraceSize(layers=24, experts=32, top_k=4, tokens=60_000, vocabulary=200_000)
MODEL_BOUND_SECONDS = 10.0
DEEPSEEK = TraceSize(layers=58, experts=256, top_k=8, tokens=200_000, vocabulary=129_280)
# Name, size, ranks, extra slots a rank.
MODELS: tuple[tuple[str, TraceSize, int, Attention, int], ...] = (
    ("gpt-oss-20b", GPT_OSS, 4, "dp", 0),
    ("gpt-oss-20b", GPT_OSS, 4, "tp", 0),
    ("gpt-oss-20b", GPT_OSS, 4, "dp", 1),
    ("gpt-oss-20b", GPT_OSS, 4, "tp", 1),
    ("gpt-oss-20b", GPT_OSS, 8, "dp", 1),
    ("gpt-oss-20b", GPT_OSS, 8, "tp", 1),
    ("DeepSeek-V3", DEEPSEEK, 32, "dp", 1),
    ("DeepSeek-V3", DEEPSEEK, 32, "tp", 0),
)


def sweep(grown: str, attention: Attention) -> Iterator[Case]:
    """The cases of one sweep, one replica slot a rank."""
    for value in GROWN[grown]:
        size = SMALL if grown == "ranks" else replace(SMALL, **{grown: value})
        ranks = value if grown == "ranks" else SMALL_RANKS
        yield Case(size=size, ranks=ranks, attention=attention, extra_slots=1, bound_seconds=0.0)


def exponent(grown: str, found: list[Measured]) -> float:
    """The slope of the logarithm of CPU seconds over that of what grows."""
    seconds = [one.cpu_s for one in found]
    return float(np.polyfit(np.log(GROWN[grown]), np.log(seconds), 1)[0])


def table(found: list[Measured]) -> list[str]:
    """A markdown table of cases."""
    lines = [
        "| layers | experts | top-k | tokens | ranks | extra slots | attention | wall s | CPU s | peak MiB "
        "| copies per token (imbalance) | linear | EPLB |",
        "|--:|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        size, case = one.case.size, one.case
        cells = [size.layers, size.experts, size.top_k, size.tokens, case.ranks, case.extra_slots, case.attention]
        times = [f"{one.wall_s:.1f}", f"{one.cpu_s:.1f}", f"{one.peak_mib:.0f}"]
        copies = [f"{one.copies[name]:.3f} ({one.imbalance[name]:.2f})" for name in ("auto", "linear", "eplb")]
        lines.append("| " + " | ".join([*map(str, cells), *times, *copies]) + " |")
    return lines


def markdown(record: dict[str, list[Measured]], about: dict[str, Any]) -> str:
    """All tables, the exponents under each sweep."""
    lines = [
        "# How `solve --method auto` grows, on synthetic routing",
        "",
        ", ".join(f"{name} {number}" for name, number in about["versions"].items()) + f"; {about['machine']}. "
        f"`{about['command']}`. CPU seconds of all threads; copies and imbalance on other requests of the same model.",
    ]
    for title, found in record.items():
        lines += ["", f"## {title}", "", *table(found)]
        grown = title.split(",")[0]
        if grown in GROWN and len(found) == len(GROWN[grown]):
            lines += ["", f"CPU seconds grow with the {grown} to the power {exponent(grown, found):.2f}."]
    return "\n".join(lines) + "\n"


def planned(sweeps: list[str], attentions: list[Attention], models: list[str]) -> Iterator[tuple[str, Case]]:
    """Every case, under the title of its table."""
    for grown in sweeps:
        for attention in attentions:
            for case in sweep(grown, attention):
                yield f"{grown}, {attention}", case
    for name, size, ranks, attention, extra_slots in MODELS:
        if name in models and attention in attentions:
            yield (
                name,
                Case(
                    size=size,
                    ranks=ranks,
                    attention=attention,
                    extra_slots=extra_slots,
                    bound_seconds=MODEL_BOUND_SECONDS,
                ),
            )


def shrunk(case: Case, by: int) -> Case:
    """The case with so many times fewer tokens, to try the script."""
    return replace(case, size=replace(case.size, tokens=case.size.tokens // by))


def write(record: dict[str, list[Measured]], name: str) -> str:
    """Write what has been measured so far; the text of the tables."""
    about = {
        "command": shlex.join(["python", "benchmarks/solver_scaling.py", *sys.argv[1:]]),
        "versions": {package: version(package) for package in ("specmoe", "numpy", "numba", "scipy", "scikit-learn")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    sweeps = {
        title: (GROWN[title.split(",")[0]][: len(found)], [one.cpu_s for one in found])
        for title, found in record.items()
        if title.split(",")[0] in GROWN
    }
    text = markdown(record, about)
    if sweeps:
        text += f"\n![CPU seconds of each sweep over what grows]({name}.svg)\n"
        plot_growth(sweeps, RESULTS / f"{name}.svg")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    rows = {title: [asdict(one) for one in found] for title, found in record.items()}
    content = json.dumps({"about": about, "tables": rows}, indent=1)
    (RESULTS / f"{name}.json").write_text(content + "\n", encoding="utf-8")
    return text


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@click.command()
@click.option("--sweeps", default=",".join(GROWN), show_default=True)
@click.option("--attention", default="dp,tp", show_default=True)
@click.option("--models", default="gpt-oss-20b,DeepSeek-V3", show_default=True)
@click.option("--name", default="solver-scaling", show_default=True, help="Of the files in benchmarks/results.")
@click.option("--shrink", type=click.IntRange(1), default=1, help="So many times fewer tokens, to try the script.")
@click.option("--one", hidden=True, help="A case as JSON, measured in this process.")
def main(sweeps: str, attention: str, models: str, name: str, shrink: int, one: str | None) -> None:
    if one is not None:
        click.echo(json.dumps(asdict(measure_here(case_from_json(one)))))
        return
    record: dict[str, list[Measured]] = {}
    attentions = [kind for kind in get_args(Attention) if kind in split(attention)]
    for title, case in planned(split(sweeps), attentions, split(models)):
        found = measure_apart(shrunk(case, shrink))
        record.setdefault(title, []).append(found)
        size, ranks = found.case.size, found.case.ranks
        click.echo(f"{title}: {size}, {ranks} ranks: {found.wall_s:.1f} s, {found.cpu_s:.1f} CPU s", err=True)
        write(record, name)
    if not record:
        raise click.UsageError("no case is left by these sweeps, models and attentions")
    click.echo(write(record, name))


if __name__ == "__main__":
    main()
