"""Everything that wants a GPU, in one call of less than 9 minutes: tests, benchmarks, checks; results in one folder.

    python benchmarks/on_gpu.py RESULTS [--only kernels,static-block] [--dry-run]

Each step is a process of its own with a time limit. One that fails or runs out of time is recorded, and the next one
starts; what it printed is in RESULTS/STEP.log, how all ended in RESULTS/summary.json, which is written after each step.
`--dry-run` does the same on the CPU through Triton's interpreter, on tiny shapes: all of it works but for the device.
Exits with 1 where a step failed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = (sys.executable, "-P")


@dataclass(frozen=True, kw_only=True)
class Step:
    """command: None where what it needs is missing, which `why_not` says. The limits add up to less than 9 minutes."""

    name: str
    command: tuple[str, ...] | None
    limit_seconds: int
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """status: "passed", "failed", "out of time" or "left out"."""

    name: str
    status: str
    seconds: float
    detail: str


def main() -> int:
    options = parse()
    options.results.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for step in steps(options.results, dry_run=options.dry_run):
        if options.only and step.name not in options.only:
            continue
        print(f"{step.name} …", flush=True)
        outcomes.append(run(step, options.results, dry_run=options.dry_run))
        print(f"{step.name}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s. {outcomes[-1].detail}", flush=True)
        text = json.dumps({"dry_run": options.dry_run, "steps": [asdict(outcome) for outcome in outcomes]}, indent=1)
        (options.results / "summary.json").write_text(text + "\n", encoding="utf-8")
    return 0 if all(outcome.status in ("passed", "left out") for outcome in outcomes) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="these steps alone")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args()


def steps(results: Path, *, dry_run: bool) -> Iterator[Step]:
    """What is worth most comes first."""
    dry = ("--dry-run",) if dry_run else ()
    # pytest-benchmark, where it is installed, warns beside several processes, and warnings are errors.
    tests = (*PYTHON, "-m", "pytest", "-q", "-n", "8", "-p", "no:benchmark", *(("--collect-only",) if dry_run else ()))
    yield Step(name="device", command=(*PYTHON, "-c", DEVICE), limit_seconds=20)
    yield Step(name="small-case", command=(*script("gpu_suite/small_case.py"), *dry), limit_seconds=45)
    yield Step(name="tests", command=(*tests, "tests/kernels"), limit_seconds=110)
    sizes = ("--tokens", "3", "--shapes", "DeepSeek-V3", "--ranks", "4") if dry_run else ORDER
    yield Step(name="kernels", command=(*script("kernels.py"), *dry, *sizes, "--out", str(results)), limit_seconds=150)
    yield Step(name="static-block", command=(*script("gpu_suite/static_step.py"), "block", *dry), limit_seconds=30)
    yield Step(name="static-model", command=(*script("gpu_suite/static_step.py"), "model", *dry), limit_seconds=30)
    small = ("--device", "cpu", "--layers", "1", "--hidden", "64", "--experts", "4", "--batches", "1", "--rounds", "1")
    large = ("--device", "cuda", "--layers", "8", "--hidden", "2048", "--experts", "64", "--top-k", "8")
    overhead = script("profiling_overhead.py")
    yield Step(name="overhead", command=(*overhead, *(small if dry_run else large), "--json"), limit_seconds=50)
    chosen = () if dry_run else ("-m", "gpu")
    yield Step(name="other-tests", command=(*tests, *chosen, *OTHER_TESTS), limit_seconds=45)
    for tool in ("memcheck", "racecheck"):
        yield sanitizer(tool)


DEVICE = """
import torch, triton
print("torch", torch.__version__, "triton", triton.__version__, "CUDA", torch.version.cuda)
print(torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "no CUDA device")
"""
# Where other stages' tests for a GPU stand: NCCL, CUDA graphs, bfloat16, streams, the profiler's recording.
OTHER_TESTS = (
    "tests/runtime/test_load.py",
    "tests/runtime/test_fixed_exchange.py",
    "tests/profiler/test_forward_pass.py",
)
# The aims are stated for the first of them; a run that is out of time has it.
ORDER = ("--shapes", "DeepSeek-V3,Qwen3-30B,gpt-oss-120b,Mixtral-8x7B")


def script(name: str) -> tuple[str, ...]:
    return (*PYTHON, str(HERE / name))


def sanitizer(tool: str) -> Step:
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        return Step(name=tool, command=None, limit_seconds=0, why_not="compute-sanitizer is not on this machine")
    command = (program, "--tool", tool, "--error-exitcode", "9", *script("gpu_suite/small_case.py"))
    return Step(name=tool, command=command, limit_seconds=25)


def run(step: Step, results: Path, *, dry_run: bool) -> Outcome:
    if step.command is None:
        return Outcome(name=step.name, status="left out", seconds=0.0, detail=step.why_not)
    # The package need not be installed: such machines often cannot fetch what it asks for.
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    environment = dict(os.environ, PYTHONSAFEPATH="1", PYTHONPATH=path)
    environment |= {"TRITON_INTERPRET": "1"} if dry_run else {}
    log = results / f"{step.name}.log"
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        try:
            code = subprocess.run(
                step.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False,
                timeout=step.limit_seconds * (10 if dry_run else 1),
            ).returncode  # fmt: skip
            status = "passed" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "out of time"
    return Outcome(name=step.name, status=status, seconds=time.monotonic() - start, detail=last_line(log))


def last_line(log: Path) -> str:
    lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


if __name__ == "__main__":
    sys.exit(main())
