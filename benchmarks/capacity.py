"""What bounding the experts' load costs, with and without the optimized placement: perplexity, drops, heaviest load.

    python benchmarks/capacity.py --demo demo --work FOLDER

Runs the demo's model on the beginnings of held-out requests under every bound of the two levels, the two overflow
rules, the two divisions among source ranks and the factors below, on four ranks: once with experts in checkpoint order
("linear"), once as solved on the profile, and once with replica slots as well. Rerouting is measured on one larger
batch too, since what a source rank must guess of the others swings less there. Writes results/capacity.json after
every plan, and docs/capacity.md from it at the end. About 18 minutes on two cores; --batches 1 takes less.
"""

import argparse
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import specmoe
from specmoe.kernels.capacity.capacity import CapacityLevel, Overflow
from specmoe.placement.capacity_quotas import Division
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.runtime.capacity import CapacityPolicy

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/capacity_suite"))

from outcome import Outcome  # noqa: E402
from page import page  # noqa: E402

NUM_RANKS = 4
PLANS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear", "best_effort": True},
    "optimized": {},
    "2 replica slots a rank": {"extra_slots": 2},
}
LEVELS: tuple[CapacityLevel, ...] = ("expert", "device")
OVERFLOWS: tuple[Overflow, ...] = ("drop", "reroute")
DIVISIONS: tuple[Division, ...] = ("even", "plan")
FACTORS = (0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
BATCH_REQUESTS = 32
LARGE_BATCH_REQUESTS = 128
LARGE_BATCH_FACTORS = (0.9, 1.0, 1.1, 1.25, 1.5)
# level, overflow, division, factor
Bounds = Sequence[tuple[CapacityLevel, Overflow, Division, float]]
BOUNDS: Bounds = tuple(product(LEVELS, OVERFLOWS, DIVISIONS, FACTORS))
LARGE_BATCH_BOUNDS: Bounds = tuple(product(LEVELS, ("reroute",), ("plan",), LARGE_BATCH_FACTORS))


def main() -> None:
    arguments = _arguments()
    heldout = RoutingProfile.load(arguments.demo / "heldout.profile")
    tokens = _requests(heldout, max(arguments.batches * BATCH_REQUESTS, LARGE_BATCH_REQUESTS), arguments.tokens)
    parts = {
        BATCH_REQUESTS: (tokens[: arguments.batches * BATCH_REQUESTS], BOUNDS),
        LARGE_BATCH_REQUESTS: (tokens[:LARGE_BATCH_REQUESTS], LARGE_BATCH_BOUNDS),
    }
    about = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/capacity.py", *_stated(arguments)]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in ("specmoe", "torch", "transformers")},
        "tokens": {batch_requests: requests.numel() for batch_requests, (requests, _) in parts.items()},
        "request_tokens": arguments.tokens,
        "num_ranks": NUM_RANKS,
        "heldout_fingerprint": heldout.fingerprint,
    }
    outcomes: list[Outcome] = []
    for attention in arguments.attention:
        for name in PLANS:
            compiled = _compile(arguments, attention, name)
            for batch_requests, (requests, bounds) in parts.items():
                about_run = {"attention": attention, "plan": name, "batch_requests": batch_requests}
                outcomes += _measure(compiled, requests, bounds, about_run)
            stored = {"about": about, "outcomes": [asdict(outcome) for outcome in outcomes]}
            (arguments.results / "capacity.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    arguments.page.write_text(page(about, outcomes), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="the folder that make demo filled")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results", help="where capacity.json goes")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/capacity.md")
    parser.add_argument("--batches", type=int, default=5, help=f"of {BATCH_REQUESTS} requests each")
    parser.add_argument("--tokens", type=int, default=128, help="of a request")
    parser.add_argument("--attention", nargs="+", choices=["dp", "tp"], default=["dp", "tp"])
    return parser.parse_args()


def _stated(arguments: argparse.Namespace) -> list[str]:
    sizes = ["--batches", str(arguments.batches), "--tokens", str(arguments.tokens)]
    return [*sizes, "--attention", *arguments.attention]


def _requests(profile: RoutingProfile, number: int, length: int) -> torch.Tensor:
    """int64 [N, S]: the beginnings of requests of the sample, evenly over the trace (domains are mixed)."""
    sample = profile.require_sample("this benchmark")
    assert sample.token_ids is not None
    assert sample.request_ids is not None
    starts = np.flatnonzero(np.diff(sample.request_ids, prepend=sample.request_ids[0] - 1))
    long_enough = starts[np.diff(starts, append=sample.num_tokens) >= length]
    chosen = np.random.default_rng(0).permutation(long_enough)[:number]
    return torch.tensor(np.stack([sample.token_ids[start : start + length] for start in chosen])).long()


def _compile(arguments: argparse.Namespace, attention: Any, name: str) -> Path:
    """The demo's model, compiled for the plan of that name."""
    fit = RoutingProfile.load(arguments.demo / "fit.profile")
    topology = Topology.single_node(NUM_RANKS)
    plan = specmoe.solve(fit, topology, attention=attention, bound_seconds=0, **PLANS[name])
    out: Path = arguments.work / f"{name}-{attention}".replace(" ", "-")
    specmoe.reshard(arguments.demo / "model", plan, out, force=True)
    return out


def _measure(compiled: Path, tokens: torch.Tensor, bounds: Bounds, about: dict[str, Any]) -> Iterator[Outcome]:
    """One plan without a bound, then under each bound; tokens: int64 [N, S]."""
    size = about["batch_requests"]
    unbounded: Any = {"division": None, "level": None, "overflow": None, "factor": None}
    yield Outcome(**about, **unbounded, **_run(compiled, None, tokens, size))
    for level, overflow, division, factor in bounds:
        bound: Any = {"level": level, "overflow": overflow, "division": division}
        print(*about.values(), *bound.values(), factor, file=sys.stderr)
        figures = _run(compiled, CapacityPolicy(factor, **bound), tokens, size)
        yield Outcome(**about, factor=factor, **bound, **figures)


@torch.inference_mode()
def _run(compiled: Path, policy: CapacityPolicy | None, tokens: torch.Tensor, size: int) -> dict[str, float]:
    """Figures over batches of `size` requests."""
    model: Any = specmoe.load(compiled, device="cpu", dtype="float32", capacity=policy, verify_hashes=False)
    losses, loads, excess, dropped, rerouted, pairs = [], [], [], 0, 0, 0
    for start in range(0, len(tokens), size):
        batch = tokens[start : start + size]
        model.specmoe.reset_counters()
        logits = model(batch, use_cache=False).logits[:, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
        for layer in model.specmoe.counters():
            chosen = layer.pairs + layer.dropped_pairs
            relative = np.array(layer.pairs_of_rank) * NUM_RANKS / chosen
            loads.append(relative.max())
            excess.append(np.maximum(relative - 1, 0).mean())
            dropped += layer.dropped_pairs
            rerouted += layer.rerouted_pairs
            pairs += chosen
    return {
        "perplexity": math.exp(torch.cat(losses).mean().item()),
        "heaviest_load": float(np.mean(loads)),
        "excess": float(np.mean(excess)),
        "dropped": dropped / pairs,
        "rerouted": rerouted / pairs,
    }


if __name__ == "__main__":
    main()
