"""What each rank runs: at every speed and for every placement, the same requests, timed and counted.

    python rank_program.py settings.json     with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set

settings.json: {"folder", "placements": {name: compiled checkpoint}, "speeds": [label], "requests": file of token ids
(safetensors "tokens", int64 [N, S]), "new_tokens", "interface"}. Rank 0 writes `FOLDER/results.json`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

import specmoe
from specmoe.runtime.packing import row_bytes
from specmoe.runtime.workers import gather


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tokens = load_file(settings["requests"])["tokens"]
    results = []
    for speed in settings["speeds"]:
        wait_for_speed(Path(settings["folder"]), speed)
        for name, compiled in settings["placements"].items():
            model = specmoe.load(compiled, device="cpu", verify_hashes=False)
            run(model, tokens, 1, settings["interface"])  # first use of every shape and connection
            rounds = [run(model, tokens, settings["new_tokens"], settings["interface"]) for _ in range(3)]
            best = min(rounds, key=lambda found: found["seconds"])
            results.append({"speed": speed, "placement": name, **best})
    if dist.get_rank() == 0:
        (Path(settings["folder"]) / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def wait_for_speed(folder: Path, speed: str) -> None:
    """Ask whoever made the network for the next speed, and go on together when it is set."""
    if dist.get_rank() == 0:
        (folder / f"want-{speed}").touch()
        while not (folder / f"set-{speed}").exists():
            time.sleep(0.05)
    dist.barrier()


@torch.inference_mode()
def run(model: Any, tokens: torch.Tensor, new_tokens: int, interface: str) -> dict[str, Any]:
    """Serve all requests once; times are of the slowest process, bytes and rows of all together."""
    runtime = model.specmoe
    own = list(range(len(tokens)))
    if not runtime.shares_requests:
        processes = runtime.assign_requests(tokens.tolist())
        own = [number for number in own if processes[number] == runtime.workers.process]
    runtime.reset_counters()
    dist.barrier()
    sent_before, start = sent_bytes(interface), time.perf_counter()
    with runtime.lock_step():
        generated, first_token = decode(model, tokens[own], new_tokens)
    seconds = time.perf_counter() - start
    sent = sent_bytes(interface) - sent_before
    counts = runtime.counters()
    hidden = model.config.hidden_size
    per_row = row_bytes(hidden, runtime.plan.top_k, model.dtype) + hidden * model.dtype.itemsize
    everyone = gather(
        {
            "seconds": seconds,
            "first_token_seconds": first_token,
            "wire_bytes": sent,
            "row_bytes": sum(layer.wire_rows for layer in counts) * per_row,
            "tokens": sum(layer.tokens for layer in counts),
            "remote_copies": sum(layer.remote_copies for layer in counts),
            "generated": dict(zip(own, generated.tolist(), strict=True)),
        }
    )
    return summary(everyone, len(tokens), new_tokens)


def decode(model: Any, tokens: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, float]:
    """int64 [B, new_tokens], chosen greedily, and the seconds to the first."""
    start = time.perf_counter()
    if len(tokens) == 0:
        return tokens[:, :0], 0.0
    output = model(tokens, use_cache=True, logits_to_keep=1)
    chosen = [output.logits[:, -1].argmax(dim=-1)]
    first_token = time.perf_counter() - start
    for _ in range(new_tokens - 1):
        output = model(chosen[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
        chosen.append(output.logits[:, -1].argmax(dim=-1))
    return torch.stack(chosen, dim=1), first_token


def summary(everyone: list[dict[str, Any]], num_requests: int, new_tokens: int) -> dict[str, Any]:
    """One finding of all processes' findings."""
    seconds = max(part["seconds"] for part in everyone)
    first_token = max(part["first_token_seconds"] for part in everyone)
    generated = {number: ids for part in everyone for number, ids in part["generated"].items()}
    return {
        "seconds": seconds,
        "first_token_seconds": first_token,
        "seconds_per_decoded_token": (seconds - first_token) / max(new_tokens - 1, 1),
        "requests_per_second": num_requests / seconds,
        "wire_bytes": sum(part["wire_bytes"] for part in everyone),
        "row_bytes": sum(part["row_bytes"] for part in everyone),
        "remote_copies_per_token": sum(p["remote_copies"] for p in everyone) / sum(p["tokens"] for p in everyone),
        "generated": [generated[number] for number in range(num_requests)],
    }


def sent_bytes(interface: str) -> int:
    """What this namespace's interface has sent, headers included."""
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())


if __name__ == "__main__":
    main()
