"""How long a process loads, and how much memory it takes: specmoe.load beside transformers' from_pretrained.

    python benchmarks/loading.py --gib 1.5 --ranks 4 --work FOLDER

Makes a random checkpoint and compiles it. Every way to load runs in fresh processes with one thread each, all at once
and in turns, with the files in the page cache and without; the median of the rounds counts. "Ready" is after a forward
pass that uses every expert, since mapped weights are read when they are used. Writes results/loading.{md,json}.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import specmoe
from specmoe.placement.plan import Attention

SUITE = Path(__file__).parent / "loading_suite"
RESULTS = Path(__file__).parent / "results"
sys.path.append(str(SUITE))

from random_checkpoint import Shape, random_plan, write_checkpoint  # noqa: E402 (the folder is no package)

FIRST_PORT = 29611
ATTENTIONS: tuple[Attention, ...] = ("dp", "tp")
SECONDS = ("load_seconds", "load_cpu_seconds", "ready_seconds")
MEBIBYTES = ("load_peak_mib", "load_own_mib", "ready_peak_mib")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to load; folder: of the checkpoint, relative to the work folder."""

    name: str
    kind: str
    folder: str
    world_size: int
    verify_hashes: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """Medians over the rounds, of the slowest process and of the largest."""

    way: str
    processes: int
    page_cache: str
    figures: dict[str, float]


def main() -> None:
    arguments = _arguments()
    shape = Shape.of_bytes(arguments.gib * 2**30)
    _prepare(arguments.work, shape, arguments.ranks)
    rows = list(_measure(arguments, shape))
    about = {
        "date": date.today().isoformat(),
        "command": shlex.join(
            [
                "python",
                "benchmarks/loading.py",
                *["--gib", str(arguments.gib), "--ranks", str(arguments.ranks), "--rounds", str(arguments.rounds)],
            ]
        ),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in ("specmoe", "torch", "transformers", "safetensors")},
        "checkpoint_bytes": _bytes_of(arguments.work / "source"),
        "shape": asdict(shape),
    }
    RESULTS.mkdir(exist_ok=True)
    stored = {"about": about, "rows": [asdict(row) for row in rows]}
    arguments.out.with_suffix(".json").write_text(json.dumps(stored, indent=1) + "\n")
    text = _text(about, rows)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.5, help="size of the checkpoint")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256, help="of the forward pass")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints; they are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "loading", help="the results' name, without its ending")
    return parser.parse_args()


def _prepare(work: Path, shape: Shape, ranks: int) -> None:
    if not (work / "source").exists():
        write_checkpoint(work / "source", shape)
    for attention in ATTENTIONS:
        if not (work / f"{attention}-{ranks}").exists():
            plan = random_plan(shape, ranks, attention)
            specmoe.reshard(work / "source", plan, work / f"{attention}-{ranks}")


def _ways(ranks: int) -> tuple[Way, ...]:
    dp, tp = (f"{attention}-{ranks}" for attention in ATTENTIONS)
    return (
        Way(name="transformers, the whole model", kind="transformers", folder="source", world_size=1),
        Way(name="specmoe, all ranks in one process", kind="specmoe", folder=dp, world_size=1),
        Way(name="transformers, the whole model in each", kind="transformers", folder="source", world_size=ranks),
        Way(name="transformers, expert parallel", kind="expert parallel", folder="source", world_size=ranks),
        Way(name="specmoe, a rank each, dp", kind="specmoe", folder=dp, world_size=ranks),
        Way(name="specmoe, a rank each, tp", kind="specmoe", folder=tp, world_size=ranks),
        Way(name="specmoe, dp, hashes checked", kind="specmoe", folder=dp, world_size=ranks, verify_hashes=True),
    )


def _measure(arguments: argparse.Namespace, shape: Shape) -> Iterator[Row]:
    ways = _ways(arguments.ranks)
    for page_cache in ("warm", "cold"):
        found: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
        for number in range(arguments.rounds):
            for way in ways:
                print(f"round {number}, {page_cache}: {way.name}", file=sys.stderr)
                _set_page_cache(arguments.work / way.folder, page_cache)
                found[way.name].append(_run(arguments, shape, way))
        for way in ways:
            figures = {name: statistics.median(run[name] for run in found[way.name]) for name in found[way.name][0]}
            yield Row(way=way.name, processes=way.world_size, page_cache=page_cache, figures=figures)


def _run(arguments: argparse.Namespace, shape: Shape, way: Way) -> dict[str, float]:
    """The slowest process's times and the largest one's memory."""
    out = arguments.work / "run"
    out.mkdir(exist_ok=True)
    for old in out.glob("*.json"):
        old.unlink()
    settings = {
        **asdict(way),
        "folder": str(arguments.work / way.folder),
        "tokens": arguments.tokens,
        "vocab_size": shape.vocab_size,
        "port": FIRST_PORT,
        "out": str(out),
    }
    (out / "settings").write_text(json.dumps(settings))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    program = [sys.executable, str(SUITE / "one_process.py"), str(out / "settings")]
    children = [subprocess.Popen([*program, str(rank)], env=environment) for rank in range(way.world_size)]
    statuses = [child.wait() for child in children]
    if any(statuses):
        raise SystemExit(f"{way.name} failed; its message is above")
    reports: list[dict[str, Any]] = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return {name: max(report[name] for report in reports) for name in (*SECONDS, *MEBIBYTES, "checksum")}


def _set_page_cache(folder: Path, page_cache: str) -> None:
    """Read all files of the folder ("warm"), or have the system drop their pages ("cold")."""
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            if page_cache == "warm":
                while file.read(2**24):
                    pass
            else:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _text(about: dict[str, Any], rows: Sequence[Row]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        "# Loading\n",
        f"A random Qwen3-MoE of {about['checkpoint_bytes'] / 2**30:.2f} GiB in bfloat16; {about['machine']}; "
        f"{versions}; {about['date']}. `{about['command']}`\n",
        "Seconds of the slowest process, MiB of the largest one above what it had before loading. Ready: after a "
        "forward pass that uses every expert. Own: memory that is no page of a file, after loading.\n",
        "| page cache | way | processes | load s | CPU s | ready s | load peak MiB | own MiB | ready peak MiB |",
        "|---" * 9 + "|",
    ]
    for row in rows:
        seconds = " | ".join(f"{row.figures[name]:.2f}" for name in SECONDS)
        mebibytes = " | ".join(f"{row.figures[name]:.0f}" for name in MEBIBYTES)
        lines.append(f"| {row.page_cache} | {row.way} | {row.processes} | {seconds} | {mebibytes} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
