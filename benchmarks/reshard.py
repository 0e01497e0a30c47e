"""How fast reshard moves a checkpoint, beside `cp` of the same files, and the most memory that it takes.

    python benchmarks/reshard.py --gib 8 --work /some/disk/with/40/GiB

Writes a synthetic sharded checkpoint of FP8 experts with their scales (tens of thousands of tensors), then copies it
with cp, with cp and sync, and compiles it to both layouts, each in a process of its own; reshard always syncs. That is
done `--rounds` times in turn, and of each the median counts. Cached pages are what a first pass over the source left,
for all alike. Prints one JSON object. Wall time needs a quiet machine, processor time does not.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology

NUM_EXPERTS, EP_SIZE, TOP_K = 256, 8, 8
HIDDEN, INTERMEDIATE, BLOCK = 2048, 512, 128
SHARD_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way of writing the checkpoint again: wall and processor time, bytes per second of wall time, most memory."""

    name: str
    seconds: float
    cpu_seconds: float
    gb_per_s: float
    peak_mib: float


def main() -> None:
    arguments = parse_arguments()
    source = arguments.work / "source"
    num_layers = max(1, round(arguments.gib * 2**30 / layer_bytes()))
    if not source.exists():
        write_checkpoint(source, num_layers)
    plan_file = arguments.work / "random.plan"
    random_plan(num_layers).save(plan_file, force=True)
    size = sum(path.stat().st_size for path in source.iterdir())
    subprocess.run(["sh", "-c", f"cat '{source}'/* > /dev/null"], check=True)
    out = arguments.work / "out"
    commands = {
        "cp": ["cp", "-r", source, out],
        "cp and sync": ["sh", "-c", f"cp -r '{source}' '{out}' && sync '{out}'/*"],
        **{
            f"reshard {layout}": [*reshard_command(source, plan_file, out, layout), *jobs_option(arguments.jobs)]
            for layout in ("ranks", "hf")
        },
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            runs[name].append(measure(name, [str(part) for part in command], size))
            shutil.rmtree(out)
    medians = [sorted(rounds, key=lambda run: run.seconds)[len(rounds) // 2] for rounds in runs.values()]
    print(json.dumps({**report(source, num_layers, size, medians), "rounds": arguments.rounds}, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=8.0, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured")
    parser.add_argument("--jobs", type=int, help="files that reshard writes at once (default: its own)")
    parser.add_argument("--work", type=Path, required=True, help="folder for source and outputs; the source is kept")
    return parser.parse_args()


def reshard_command(source: Path, plan: Path, out: Path, layout: str) -> list[object]:
    return [Path(sys.executable).parent / "specmoe", "reshard", source, plan, "-o", out, "--layout", layout]


def jobs_option(jobs: int | None) -> list[object]:
    return [] if jobs is None else ["--jobs", jobs]


def measure(name: str, command: Sequence[str], size: int) -> Run:
    os.sync()
    started, peak = time.monotonic(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, peak_kib(process.pid))
        time.sleep(0.01)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{name} failed with status {process.returncode}")
    return Run(
        name=name,
        seconds=round(seconds, 2),
        cpu_seconds=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        gb_per_s=round(size / seconds / 1e9, 3),
        peak_mib=round(peak / 1024, 1),
    )


def peak_kib(process_id: int) -> int:
    """The largest resident memory so far; not from rusage, which a child inherits from this process."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def report(source: Path, num_layers: int, size: int, runs: Sequence[Run]) -> dict[str, object]:
    speed = {run.name: run.gb_per_s for run in runs}
    ratios = {
        f"{name} over {base}": round(speed[name] / speed[base], 3)
        for name in ("reshard ranks", "reshard hf")
        for base in ("cp", "cp and sync")
    }
    return {
        "machine": {"processors": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "checkpoint": {
            "bytes": size,
            "files": len(list(source.iterdir())),
            "tensors": num_layers * (NUM_EXPERTS * 6 + 2) + 1,
        },
        "runs": [asdict(run) for run in runs],
        "ratios": ratios,
    }


def expert_tensors() -> dict[str, tuple[str, tuple[int, int]]]:
    wide, tall = (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
    tensors: dict[str, tuple[str, tuple[int, int]]] = {}
    for projection, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", tall)):
        tensors[f"{projection}.weight"] = ("F8_E4M3", shape)
        tensors[f"{projection}.weight_scale_inv"] = ("F32", (shape[0] // BLOCK, shape[1] // BLOCK))
    return tensors


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape)) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]


def layer_tensors(layer: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    prefix = f"model.layers.{layer}"
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{prefix}.mlp.gate.weight": ("BF16", (NUM_EXPERTS, HIDDEN)),
        f"{prefix}.self_attn.o_proj.weight": ("BF16", (HIDDEN, HIDDEN)),
    }
    for expert in range(NUM_EXPERTS):
        tensors |= {f"{prefix}.mlp.experts.{expert}.{name}": tensor for name, tensor in expert_tensors().items()}
    return tensors


def layer_bytes() -> int:
    return sum(tensor_bytes(*tensor) for tensor in layer_tensors(0).values())


def write_checkpoint(folder: Path, num_layers: int) -> None:
    """Shards of about `SHARD_BYTES`, in the order of the layers, filled with pseudo-random bytes."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": num_layers,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "n_group": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    per_shard = max(1, SHARD_BYTES // layer_bytes())
    starts = range(0, num_layers, per_shard)
    for number, start in enumerate(starts, start=1):
        name = f"model-{number:05d}-of-{len(starts):05d}.safetensors"
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        for layer in range(start, min(start + per_shard, num_layers)):
            tensors |= layer_tensors(layer)
        write_shard(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_shard(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = position + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    rng = np.random.default_rng(position)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position > 0:
            file.write(rng.bytes(min(position, 2**26)))
            position -= 2**26


def random_plan(num_layers: int) -> PlacementPlan:
    rng = np.random.default_rng(0)
    experts = np.stack([rng.permutation(NUM_EXPERTS) for _ in range(num_layers)]).astype(np.int32)
    slot_of = np.argsort(experts, axis=1).astype(np.int32)
    return PlacementPlan(
        topology=Topology.single_node(EP_SIZE),
        num_logical_experts=NUM_EXPERTS,
        top_k=TOP_K,
        attention="dp",
        replica_choice="static",
        layer_ids=np.arange(num_layers, dtype=np.int32),
        physical_to_logical=experts,
        rank_of_physical=np.repeat(np.arange(EP_SIZE, dtype=np.int32), NUM_EXPERTS // EP_SIZE),
        dispatch_slot=np.broadcast_to(slot_of[:, None, :], (num_layers, EP_SIZE, NUM_EXPERTS)).copy(),
        method="random",
    )


if __name__ == "__main__":
    main()
