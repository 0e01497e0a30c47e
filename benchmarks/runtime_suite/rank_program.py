"""What each rank runs: every case at every speed, the same requests, timed and counted.

    python rank_program.py settings.json     with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set

settings.json: {"folder", "cases": [{"name", "kind", "checkpoint", "attention", "workload", "speeds"}], "rounds",
"slowdowns", "interface"}. Before a case is loaded and before each of its speeds the program asks for the next step
with a file `want-STEP` and goes on when there is `set-STEP`. Rank 0 writes `FOLDER/results.json`: one object per case
and speed.
"""

import json
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from servers import Server, start_server
from workload import Workload

from specmoe.runtime.workers import gather

TIMEOUT = timedelta(seconds=300)
# After so long a measurement is not repeated any more.
ENOUGH_SECONDS = 12.0


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    steps, results = Steps(Path(settings["folder"])), []
    for case in settings["cases"]:
        results += measure_case(case, settings, steps)
        if dist.get_rank() == 0:
            (steps.folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


class Steps:
    """The steps that whoever made the network follows: it sets the links' speed for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = -1

    def next(self) -> None:
        """Ask for the next step, and go on together when it is set."""
        self.number += 1
        dist.barrier()
        if dist.get_rank() == 0:
            (self.folder / f"want-{self.number}").touch()
            while not (self.folder / f"set-{self.number}").exists():
                time.sleep(0.02)
        dist.barrier()


def measure_case(case: dict[str, Any], settings: dict[str, Any], steps: Steps) -> list[dict[str, Any]]:
    """One result per speed; a baseline that cannot run here has results that say why."""
    workload = Workload.load(Path(case["workload"]))
    steps.next()
    server, reason = _start(case, workload, settings["interface"], settings["slowdowns"][dist.get_rank()])
    results = []
    for speed in case["speeds"]:
        steps.next()
        result = {"case": case["name"], "speed": speed, "step": steps.number}
        if server is None:
            results.append(result | {"cannot_run": reason})
            continue
        results.append(result | median_round(server, workload, settings))
    return results


def median_round(server: Server, workload: Workload, settings: dict[str, Any]) -> dict[str, Any]:
    """The round of median time (of two the faster one), and how many `rounds` there were."""
    rounds: list[dict[str, Any]] = []
    # The times are those of the slowest process, so that all processes stop together.
    while len(rounds) < settings["rounds"] and sum(found["seconds"] for found in rounds) < ENOUGH_SECONDS:
        rounds.append(serve(server, workload, settings["interface"]))
    by_time = sorted(rounds, key=lambda found: found["seconds"])
    return by_time[(len(rounds) - 1) // 2] | {"rounds": len(rounds)}


def _start(
    case: dict[str, Any], workload: Workload, interface: str, slowdown: float
) -> tuple[Server | None, str | None]:
    """The server after the first use of every connection, or none and the reason, the same on all processes."""
    server, reason = None, None
    try:
        server = start_server(case["kind"], case["checkpoint"], case["attention"], workload, slowdown)
        serve(server, workload, interface, max_passes=3)
    # An outside package's: whatever it is, it is told.
    except Exception as error:
        if case["kind"] == "specmoe":
            raise
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    reasons = [found for found in gather(reason) if found]
    return (None, reasons[0]) if reasons else (server, None)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Of this process's requests: int64 [n, passes], the ids chosen greedily; float32 [n, V]; seconds to the first."""

    chosen: torch.Tensor
    first_logits: torch.Tensor
    first_token_seconds: float


@torch.inference_mode()
def serve(server: Server, workload: Workload, interface: str, max_passes: int | None = None) -> dict[str, Any]:
    """Serve all requests once; times are of the slowest process, bytes and copies of all together."""
    own = server.own_requests(workload)
    server.counted()
    dist.barrier()
    sent_before, start = sent_bytes(interface), time.perf_counter()
    with server.session():
        answers = decode(server, workload, own, max_passes)
    seconds = time.perf_counter() - start
    dist.barrier()
    found = {
        "seconds": seconds,
        "first_token_seconds": answers.first_token_seconds,
        "wire_bytes": sent_bytes(interface) - sent_before,
        **server.counted(),
        **compared(workload, own, answers),
    }
    return summary(gather(found), workload)


def decode(server: Server, workload: Workload, own: list[int], max_passes: int | None) -> Answers:
    """Run the prompts, then every further token: the given ones of a replay, else those just chosen."""
    tokens, expert_ids = workload.tokens[own], workload.expert_ids[own]
    chosen, cache, first_logits, first_token = [], None, torch.zeros(0), 0.0
    start = time.perf_counter()
    for number, columns in enumerate(workload.passes()):
        if not own or number == max_passes:
            break
        ids = tokens[:, columns] if number == 0 or workload.replay else chosen[-1][:, None]
        if server.replay is not None:
            server.replay.begin_forward(expert_ids[:, columns])
        output = server.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        chosen.append(logits.argmax(dim=-1))
        if number == 0:
            first_logits, first_token = logits, time.perf_counter() - start
    return Answers(
        chosen=torch.stack(chosen, dim=1) if chosen else torch.zeros((0, 0), dtype=torch.int64),
        first_logits=first_logits,
        first_token_seconds=first_token,
    )


def compared(workload: Workload, own: list[int], answers: Answers) -> dict[str, Any]:
    """This process's answers beside the unmodified model's."""
    if not own:
        return {"logit_error": 0.0, "equal_tokens": 0, "compared_tokens": 0}
    expected_logits = workload.first_logits[own]
    error = (answers.first_logits - expected_logits).abs().max() / expected_logits.abs().max()
    if workload.replay:
        return {"logit_error": float(error), "equal_tokens": 0, "compared_tokens": 0}
    expected = workload.tokens[own][:, workload.prompt_tokens :][:, : answers.chosen.shape[1]]
    return {
        "logit_error": float(error),
        "equal_tokens": int((answers.chosen == expected).sum()),
        "compared_tokens": expected.numel(),
    }


def summary(everyone: list[dict[str, Any]], workload: Workload) -> dict[str, Any]:
    """One finding of all processes' findings."""
    seconds = max(part["seconds"] for part in everyone)
    first_token = max(part["first_token_seconds"] for part in everyone)
    decoded = workload.new_tokens - 1
    result = {
        "seconds": seconds,
        "first_token_seconds": first_token,
        "seconds_per_decoded_token": (seconds - first_token) / max(decoded, 1),
        "prefill_tokens_per_second": workload.num_requests * workload.prompt_tokens / first_token,
        "decode_tokens_per_second": workload.num_requests * decoded / (seconds - first_token),
        "tokens_per_second": workload.num_requests * (workload.prompt_tokens + decoded) / seconds,
        "wire_bytes_of_rank": [part["wire_bytes"] for part in everyone],
        "logit_error": max(part["logit_error"] for part in everyone),
        "equal_tokens": sum(part["equal_tokens"] for part in everyone),
        "compared_tokens": sum(part["compared_tokens"] for part in everyone),
    }
    if "tokens" in everyone[0]:
        counted = sum(part["tokens"] for part in everyone)
        result["remote_copies_per_token"] = sum(part["remote_copies"] for part in everyone) / counted
    return result


def sent_bytes(interface: str) -> int:
    """What this namespace's interface has sent, headers included."""
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_bytes").read_text())


if __name__ == "__main__":
    main()
