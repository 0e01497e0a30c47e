"""What each process of a measured way to load runs: load, then one forward pass, timed and weighed.

    python one_process.py settings.json RANK

settings.json: {"kind": "transformers" | "expert parallel" | "specmoe", "folder": the checkpoint, "world_size",
"verify_hashes", "tokens", "vocab_size", "port", "out": a folder}. Writes `OUT/RANK.json`.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import specmoe
from specmoe.quiet import quiet_transformers

MIB = 2**20


def main() -> None:
    settings, rank = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    torch.set_num_threads(1)
    _start_group(settings, rank)
    load = _loader(settings)
    own_before = _memory("RssAnon")
    before = own_before + _memory("RssFile")
    if dist.is_initialized():
        dist.barrier()
    # From here on the system counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    started, used = time.perf_counter(), time.process_time()
    with quiet_transformers():
        model = load()
    loaded = time.perf_counter()
    found = {"load_seconds": loaded - started, "load_cpu_seconds": time.process_time() - used}
    found |= {"load_peak_mib": _memory("VmHWM") - before, "load_own_mib": _memory("RssAnon") - own_before}
    logits = _forward(model, settings)
    found |= {"ready_seconds": time.perf_counter() - started, "ready_cpu_seconds": time.process_time() - used}
    found |= {"ready_peak_mib": _memory("VmHWM") - before}
    found |= {"checksum": _checksum(logits.float())}
    (Path(settings["out"]) / f"{rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.destroy_process_group()


def _start_group(settings: dict[str, Any], rank: int) -> None:
    if settings["world_size"] == 1 or settings["kind"] == "transformers":
        return
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": settings["world_size"], "MASTER_PORT": settings["port"]}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo")


def _loader(settings: dict[str, Any]) -> Any:
    """The function that loads, after everything has been imported."""
    from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

    folder = settings["folder"]
    if settings["kind"] == "specmoe":
        # The attribute imports the runtime.
        return partial(specmoe.load, folder, device="cpu", verify_hashes=settings["verify_hashes"])
    if settings["kind"] == "transformers":
        return partial(Qwen3MoeForCausalLM.from_pretrained, folder, dtype=torch.bfloat16)
    from transformers.distributed.configuration_utils import DistributedConfig

    ranks = settings["world_size"]
    # The one kind of expert parallelism that runs without GPUs, with attention split too.
    parallel = DistributedConfig(ep_size=ranks, tp_size=ranks, ep_implementation="all_reduce")
    return partial(AutoModelForCausalLM.from_pretrained, folder, dtype=torch.bfloat16, distributed_config=parallel)


@torch.inference_mode()
def _forward(model: Any, settings: dict[str, Any]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(settings["vocab_size"], (1, settings["tokens"]), generator=generator)
    logits: torch.Tensor = model(tokens, use_cache=False).logits[0, -1]
    return logits


def _checksum(logits: torch.Tensor) -> float:
    """The logits, scaled to length one, along a fixed random direction: about -1 to 1, and another for other logits."""
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    return float(logits @ direction / logits.norm())


def _memory(name: str) -> float:
    """MiB of this process, by the name in its status: RssAnon is its own, RssFile is mapped, VmHWM the peak of all."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")) / MIB


if __name__ == "__main__":
    main()
