"""How fast reshard moves a checkpoint, beside `cp` of the same files, and the most memory that it takes.

    python benchmarks/reshard.py --gib 8 --work FOLDER      # 20 GiB of disk

Writes a synthetic sharded checkpoint with tens of thousands of tensors, then copies it with cp and compiles it to both
layouts, in turns, each time in fresh processes, with the source in the page cache and without; the median of the
rounds counts. The speed is compared with that of cp followed by a sync of its files, since reshard syncs what it
writes. cp alone leaves part of it in memory. Writes results/reshard.{json,md} and shows them in docs/reshard.md and
the README, unless `--out` names another place. The times need a quiet machine.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "reshard_suite")]

from measured_run import Run, measured_run
from page_cache import set_page_cache
from shown_block import ROOT, show
from synthetic_checkpoint import num_layers_of, num_tensors, random_plan, write_checkpoint

RECORD = ROOT / "benchmarks" / "results" / "reshard"
BASELINE = "cp, then sync"
LAYOUTS = ("ranks", "hf")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Medians over the rounds of one way of writing the checkpoint, and its speed over that of `BASELINE`."""

    way: str
    page_cache: str
    figures: Mapping[str, float]
    ratio: float


def main() -> None:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    source, num_layers = arguments.work / "source", num_layers_of(arguments.gib * 2**30)
    if not source.exists():
        write_checkpoint(source, num_layers)
    random_plan(num_layers).save(arguments.work / "random.plan", force=True)
    rows = [row for state in ("warm", "cold") for row in _measure(arguments.work, state, arguments.rounds)]
    about = {
        "date": date.today().isoformat(),
        "command": f"python benchmarks/reshard.py --gib {arguments.gib} --rounds {arguments.rounds} --work FOLDER",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "checkpoint_bytes": sum(path.stat().st_size for path in source.iterdir()),
        "files": len(list(source.iterdir())),
        "tensors": num_tensors(num_layers),
        "rounds": arguments.rounds,
    }
    stored = {"about": about, "rows": [asdict(row) for row in rows]}
    arguments.out.with_suffix(".json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    text = table(stored)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    if arguments.out == RECORD:
        show(ROOT / "docs" / "reshard.md", "reshard", text)
        show(ROOT / "README.md", "reshard", summary(stored))
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=8.0, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured")
    parser.add_argument("--work", type=Path, required=True, help="folder for source and outputs; the source is kept")
    parser.add_argument("--out", type=Path, default=RECORD, help="the results' name, without its ending")
    return parser.parse_args()


def _ways(work: Path, out: Path) -> dict[str, list[str]]:
    """Commands by name; each writes the folder `out`."""
    source = str(work / "source")
    ways = {
        BASELINE: ["sh", "-c", 'cp -r "$0" "$1" && sync "$1"/*', source, str(out)],
        "cp alone": ["cp", "-r", source, str(out)],
    }
    program = [str(Path(sys.executable).parent / "specmoe"), "reshard", source, str(work / "random.plan")]
    for layout in LAYOUTS:
        ways[f"reshard, {layout}"] = [*program, "-o", str(out), "--layout", layout]
        ways[f"reshard, {layout}, --jobs 1"] = [*ways[f"reshard, {layout}"], "--jobs", "1"]
    return ways


def _measure(work: Path, page_cache: str, rounds: int) -> list[Row]:
    out = work / "out"
    ways = _ways(work, out)
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, command in ways.items():
            print(f"round {number}, {page_cache}: {name}", file=sys.stderr)
            shutil.rmtree(out, ignore_errors=True)
            set_page_cache(work / "source", page_cache)
            runs[name].append(measured_run(command))
    shutil.rmtree(out)
    medians = {name: _medians(found) for name, found in runs.items()}
    base = medians[BASELINE]["seconds"]
    return [
        Row(way=name, page_cache=page_cache, figures=figures, ratio=round(base / figures["seconds"], 3))
        for name, figures in medians.items()
    ]


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    names = [field.name for field in fields(Run)]
    # To a tenth of a millisecond: no command is as quick as that, however little it copies.
    return {name: round(statistics.median(getattr(run, name) for run in runs), 4) for name in names}


def table(stored: Mapping[str, Any]) -> str:
    """The record in Markdown, for the documentation."""
    about = stored["about"]
    lines = [
        f"{about['checkpoint_bytes'] / 2**30:.2f} GiB in {about['tensors']:,} tensors and {about['files']} files; "
        f"{about['machine']}; medians of {about['rounds']} rounds, {about['date']}. `{about['command']}`\n",
        "| source in page cache | way | seconds | CPU seconds | GB/s | speed beside cp and sync | most memory, MiB | "
        "read from disk, GB |",
        "|---" * 8 + "|",
    ]
    for row in stored["rows"]:
        figures = row["figures"]
        speed = about["checkpoint_bytes"] / figures["seconds"] / 1e9
        cached = {"warm": "yes", "cold": "no"}[row["page_cache"]]
        lines.append(
            f"| {cached} | {row['way']} | {figures['seconds']:.1f} | {figures['cpu_seconds']:.1f} | {speed:.2f} | "
            f"{row['ratio']:.2f} | {figures['peak_mib']:.0f} | {figures['read_gb']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def summary(stored: Mapping[str, Any]) -> str:
    """The record in two sentences, for the README."""
    about = stored["about"]
    rows = [row for row in stored["rows"] if row["way"] in {f"reshard, {layout}" for layout in LAYOUTS}]
    ratios = [row["ratio"] for row in rows]
    peak = max(row["figures"]["peak_mib"] for row in rows)
    size = f"{about['checkpoint_bytes'] / 2**30:.1f} GiB in {about['tensors']:,} tensors"
    return (
        f"{size} were compiled at {min(ratios):.2f} to {max(ratios):.2f} of the speed of `cp` and a sync of the same "
        f"files ({about['machine']}), in at most {peak:.0f} MiB of memory.\n[docs/reshard.md](docs/reshard.md) has "
        "both layouts, with the source in the page cache and without."
    )


if __name__ == "__main__":
    main()
