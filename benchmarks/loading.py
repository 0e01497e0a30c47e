"""How long a process loads, and how much memory it takes: specmoe.load beside transformers' from_pretrained.

    python benchmarks/loading.py --gib 1.5 --ranks 4 --work FOLDER

Makes a random checkpoint and compiles it. Every way to load runs in fresh processes with one thread each, all at once
and in turns, with the files in the page cache and without; the median of the rounds counts. "Ready" is after a forward
pass that uses every expert, since mapped weights are read when they are used; its logits must be the same in every way.
Writes results/loading.{md,json} and shows them in docs/reshard.md and the README, unless `--out` names another place.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import specmoe
from specmoe.placement.plan import Attention

SUITE = Path(__file__).parent / "loading_suite"
sys.path += [str(Path(__file__).parent), str(SUITE)]

from page_cache import set_page_cache  # noqa: E402 (the folders are no packages)
from random_checkpoint import Shape, random_plan, write_checkpoint  # noqa: E402
from shown_block import ROOT, show  # noqa: E402

RECORD = ROOT / "benchmarks" / "results" / "loading"
FIRST_PORT = 29611
ATTENTIONS: tuple[Attention, ...] = ("dp", "tp")
# The ways that the README compares: a process a rank, each with its own part, or each with the whole model.
# Unless it is told not to, specmoe checks the SHA-256 of every file that it reads; transformers checks nothing.
UNCHECKED = "specmoe, a rank each, dp, hashes not checked"
OURS, THEIRS, WHOLE = (
    "specmoe, a rank each, dp",
    "transformers, expert parallel",
    "transformers, the whole model in each",
)
SECONDS = ("load_seconds", "load_cpu_seconds", "ready_seconds", "ready_cpu_seconds")
# Other logits differ by about 1; sums in another order, in bfloat16, by much less than this.
CHECKSUM_TOLERANCE = 0.1
MEBIBYTES = ("load_peak_mib", "load_own_mib", "ready_peak_mib")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to load; folder: of the checkpoint, relative to the work folder."""

    name: str
    kind: str
    folder: str
    world_size: int
    verify_hashes: bool = True


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
        "command": f"python benchmarks/loading.py --gib {arguments.gib} --ranks {arguments.ranks} "
        f"--rounds {arguments.rounds} --work FOLDER",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in ("specmoe", "torch", "transformers", "safetensors")},
        "checkpoint_bytes": _bytes_of(arguments.work / "source"),
        "shape": asdict(shape),
    }
    stored = {"about": about, "rows": [asdict(row) for row in rows]}
    arguments.out.with_suffix(".json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    text = table(stored)
    arguments.out.with_suffix(".md").write_text(text, encoding="utf-8")
    if arguments.out == RECORD:
        show(ROOT / "docs" / "reshard.md", "loading", text)
        show(ROOT / "README.md", "loading", summary(stored))
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.5, help="size of the checkpoint")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256, help="of the forward pass")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints; they are kept")
    parser.add_argument("--out", type=Path, default=RECORD, help="the results' name, without its ending")
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
        Way(name=WHOLE, kind="transformers", folder="source", world_size=ranks),
        Way(name=THEIRS, kind="expert parallel", folder="source", world_size=ranks),
        Way(name=OURS, kind="specmoe", folder=dp, world_size=ranks),
        Way(name="specmoe, a rank each, tp", kind="specmoe", folder=tp, world_size=ranks),
        Way(name=UNCHECKED, kind="specmoe", folder=dp, world_size=ranks, verify_hashes=False),
    )


def _measure(arguments: argparse.Namespace, shape: Shape) -> Iterator[Row]:
    ways = _ways(arguments.ranks)
    for page_cache in ("warm", "cold"):
        found: dict[str, list[dict[str, float]]] = {way.name: [] for way in ways}
        for number in range(arguments.rounds):
            for way in ways:
                print(f"round {number}, {page_cache}: {way.name}", file=sys.stderr)
                set_page_cache(arguments.work / way.folder, page_cache)
                found[way.name].append(_run(arguments, shape, way))
        _require_same({way.name: run["checksum"] for way in ways for run in found[way.name]})
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


def _require_same(checksums: Mapping[str, float]) -> None:
    """Raise `SystemExit` unless every way gave the same logits, as far as one number says."""
    first = next(iter(checksums.values()))
    for name, checksum in checksums.items():
        if not abs(checksum - first) <= CHECKSUM_TOLERANCE:
            raise SystemExit(f"{name} gives other logits: their checksum is {checksum}, {first} was expected")


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def table(stored: Mapping[str, Any]) -> str:
    """The record in Markdown, for the documentation."""
    about = stored["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"A random Qwen3-MoE of {about['checkpoint_bytes'] / 2**30:.2f} GiB in bfloat16; {about['machine']}; "
        f"{versions}; {about['date']}. `{about['command']}`\n",
        "Seconds of the slowest process, MiB of the largest one above what it had before loading. Ready: after a "
        "forward pass that uses every expert; under dp each process answers a prompt of its own, elsewhere all answer "
        "one. Own: memory that is no page of a file, after loading.\n",
        "| page cache | way | processes | load s | its CPU s | ready s | its CPU s | load peak MiB | own MiB | "
        "ready peak MiB |",
        "|---" * 10 + "|",
    ]
    for row in stored["rows"]:
        seconds = " | ".join(f"{row['figures'][name]:.2f}" for name in SECONDS)
        mebibytes = " | ".join(f"{row['figures'][name]:.0f}" for name in MEBIBYTES)
        lines.append(f"| {row['page_cache']} | {row['way']} | {row['processes']} | {seconds} | {mebibytes} |")
    return "\n".join(lines) + "\n"


def summary(stored: Mapping[str, Any]) -> str:
    """The record in a few words, for the README."""
    about = stored["about"]
    warm = {row["way"]: row["figures"] for row in stored["rows"] if row["page_cache"] == "warm"}
    ours, unchecked, *others = (warm[way] for way in (OURS, UNCHECKED, THEIRS, WHOLE))
    (parallel_s, parallel_mib), (whole_s, whole_mib) = ((o["ready_seconds"], o["ready_peak_mib"]) for o in others)
    processes = next(row["processes"] for row in stored["rows"] if row["way"] == OURS)
    model = (
        f"{processes} processes of {about['machine']}, {about['checkpoint_bytes'] / 2**30:.1f} GiB in the page cache"
    )
    return (
        f"{model}: the first prompt is answered {ours['ready_seconds']:.1f} s after the start of loading, the hash of "
        f"every file checked ({unchecked['ready_seconds']:.1f} s without), with {ours['ready_peak_mib']:.0f} MiB a "
        f"process. transformers' `from_pretrained` takes {parallel_s:.1f} s and {parallel_mib:.0f} MiB expert "
        f"parallel, {whole_s:.1f} s and {whole_mib:.0f} MiB with the whole model in each process "
        "([docs/reshard.md](docs/reshard.md))."
    )


if __name__ == "__main__":
    main()
