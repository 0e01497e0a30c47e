"""What bounding the experts' load costs, with and without the optimized placement: perplexity, drops, heaviest load.

    python benchmarks/capacity.py --demo demo --work /tmp/capacity-benchmark

Runs the demo's model on the beginnings of held-out requests under every bound of the two levels, the two overflow
rules and the factors below, on four ranks under `dp`, once with experts in checkpoint order ("linear") and once as
solved on the profile. Writes results/capacity.json, and docs/capacity.md from it.
"""

import argparse
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import specmoe
from specmoe.kernels.capacity.capacity import CapacityLevel, Overflow
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.runtime.capacity import CapacityPolicy

ROOT = Path(__file__).parents[1]
NUM_RANKS = 4
PLANS = ("linear", "optimized")
LEVELS: tuple[CapacityLevel, ...] = ("expert", "device")
OVERFLOWS: tuple[Overflow, ...] = ("drop", "reroute")
FACTORS = (1.0, 1.5, 2.0, 3.0)
# Heaviest loads at which the two placements are compared.
SAME_LOADS = (1.0, 1.1)
BATCH_REQUESTS = 32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One plan under one bound (factor None: none); shares are of all pairs.

    heaviest_load: the pairs of the busiest rank over the mean rank's share of all pairs that the router chose, in each
    batch and layer, averaged.
    """

    plan: str
    level: str | None
    overflow: str | None
    factor: float | None
    perplexity: float
    heaviest_load: float
    dropped: float
    rerouted: float


def main() -> None:
    arguments = _arguments()
    heldout = RoutingProfile.load(arguments.demo / "heldout.profile")
    tokens = _requests(heldout, arguments.batches * BATCH_REQUESTS, arguments.tokens)
    outcomes = list(_measure(arguments, tokens))
    about = {
        "date": date.today().isoformat(),
        "command": shlex.join(
            [
                "python",
                "benchmarks/capacity.py",
                *["--batches", str(arguments.batches), "--tokens", str(arguments.tokens)],
            ]
        ),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in ("specmoe", "torch", "transformers")},
        "tokens": tokens.numel(),
        "request_tokens": arguments.tokens,
        "num_ranks": NUM_RANKS,
        "heldout_fingerprint": heldout.fingerprint,
    }
    stored = {"about": about, "outcomes": [asdict(outcome) for outcome in outcomes]}
    (ROOT / "benchmarks/results/capacity.json").write_text(json.dumps(stored, indent=1) + "\n")
    (ROOT / "docs/capacity.md").write_text(page(about, outcomes))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="the folder that make demo filled")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=5, help=f"of {BATCH_REQUESTS} requests each")
    parser.add_argument("--tokens", type=int, default=128, help="of a request")
    return parser.parse_args()


def _requests(profile: RoutingProfile, number: int, length: int) -> torch.Tensor:
    """int64 [N, S]: the beginnings of requests of the sample, evenly over the trace (domains are mixed)."""
    sample = profile.require_sample("this benchmark")
    assert sample.token_ids is not None
    assert sample.request_ids is not None
    starts = np.flatnonzero(np.diff(sample.request_ids, prepend=sample.request_ids[0] - 1))
    long_enough = starts[np.diff(starts, append=sample.num_tokens) >= length]
    chosen = np.random.default_rng(0).permutation(long_enough)[:number]
    return torch.tensor(np.stack([sample.token_ids[start : start + length] for start in chosen])).long()


def _measure(arguments: argparse.Namespace, tokens: torch.Tensor) -> Iterator[Outcome]:
    fit = RoutingProfile.load(arguments.demo / "fit.profile")
    for name, method in zip(PLANS, ("linear", "auto"), strict=True):
        plan = specmoe.solve(fit, Topology.single_node(NUM_RANKS), method=method, best_effort=True)
        out = arguments.work / name
        specmoe.reshard(arguments.demo / "model", plan, out, force=True)
        yield Outcome(plan=name, level=None, overflow=None, factor=None, **_run(out, None, tokens))
        for level, overflow, factor in product(LEVELS, OVERFLOWS, FACTORS):
            print(f"{name}: {level} {overflow} {factor}", file=sys.stderr)
            figures = _run(out, CapacityPolicy(factor, level=level, overflow=overflow), tokens)
            yield Outcome(plan=name, level=level, overflow=overflow, factor=factor, **figures)


@torch.inference_mode()
def _run(compiled: Path, policy: CapacityPolicy | None, tokens: torch.Tensor) -> dict[str, float]:
    model: Any = specmoe.load(compiled, device="cpu", dtype="float32", capacity=policy, verify_hashes=False)
    losses, loads, dropped, rerouted, pairs = [], [], 0, 0, 0
    for start in range(0, len(tokens), BATCH_REQUESTS):
        batch = tokens[start : start + BATCH_REQUESTS]
        model.specmoe.reset_counters()
        logits = model(batch, use_cache=False).logits[:, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
        for layer in model.specmoe.counters():
            chosen = layer.pairs + layer.dropped_pairs
            loads.append(max(layer.pairs_of_rank) * NUM_RANKS / chosen)
            dropped += layer.dropped_pairs
            rerouted += layer.rerouted_pairs
            pairs += chosen
    return {
        "perplexity": math.exp(torch.cat(losses).mean().item()),
        "heaviest_load": float(np.mean(loads)),
        "dropped": dropped / pairs,
        "rerouted": rerouted / pairs,
    }


HEAD = """# Capacity bounds, with and without the optimized placement

Made by `benchmarks/capacity.py` from its result, [capacity.json](../benchmarks/results/capacity.json). A
`CapacityPolicy(factor, level, overflow)` bounds the (token, expert) pairs that a rank's tokens may send to one expert
or, at level `device`, to one rank, to `factor` times the mean; pairs beyond it are dropped, or rerouted to experts of
the token's own rank that have room. It is off by default, and lossy.

Heaviest load: the pairs of the busiest rank over the mean of what the router chose, averaged over batches and layers;
what a step waits for. Dropped and rerouted: shares of all pairs. Perplexity is on held-out text. The last column is the
optimized plan's share of dropped pairs over the linear placement's, under the same bound.

How to read it: the bound is enforced on each source rank by itself, so that nothing has to be exchanged first. An
optimized plan has a rank's tokens choose the experts of that same rank, which is what saves the traffic; those pairs
count against the rank's own bound, although the other ranks send there the less. So one factor is a tighter bound
under the optimized plan: it lowers the heaviest load further, and drops more.
"""


def page(about: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """docs/capacity.md."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        HEAD,
        f"The demo's model, {about['num_ranks']} ranks under `dp`, {about['tokens']:,} held-out tokens in batches of "
        f"{BATCH_REQUESTS} requests of {about['request_tokens']}; {versions}; {about['machine']}; {about['date']}; "
        f"`{about['command']}`.\n",
        "| level | overflow | factor | perplexity: linear | optimized | heaviest load: linear | optimized "
        "| dropped: linear | optimized | rerouted: linear | optimized | drops, optimized over linear |",
        "|---" * 12 + "|",
    ]
    linear, optimized = ([outcome for outcome in outcomes if outcome.plan == plan] for plan in PLANS)
    for one, other in zip(linear, optimized, strict=True):
        bound = "no bound | | " if one.factor is None else f"{one.level} | {one.overflow} | {one.factor}"
        ratio = f"{other.dropped / one.dropped:.2f}" if one.dropped else ""
        lines.append(
            f"| {bound} | {one.perplexity:.2f} | {other.perplexity:.2f} "
            f"| {one.heaviest_load:.3f} | {other.heaviest_load:.3f} | {one.dropped:.2%} | {other.dropped:.2%} "
            f"| {one.rerouted:.2%} | {other.rerouted:.2%} | {ratio} |"
        )
    return "\n".join([*lines, *_same_load(linear, optimized)]) + "\n"


def _same_load(linear: Sequence[Outcome], optimized: Sequence[Outcome]) -> Iterator[str]:
    """The second table: drops that go with one heaviest load, between the factors on a straight line."""
    yield "\n## For the same heaviest load\n"
    yield "Dropped pairs, by interpolation between the factors above; empty where no factor reaches the load.\n"
    yield "| level | overflow | heaviest load | dropped: linear | optimized |"
    yield "|---" * 5 + "|"
    for level, overflow, load in product(LEVELS, OVERFLOWS, SAME_LOADS):
        shares = [_dropped_at(load, level, overflow, outcomes) for outcomes in (linear, optimized)]
        shown = " | ".join("" if share is None else f"{share:.2%}" for share in shares)
        yield f"| {level} | {overflow} | {load} | {shown} |"


def _dropped_at(load: float, level: str, overflow: str, outcomes: Sequence[Outcome]) -> float | None:
    """The share of dropped pairs where the heaviest load is `load`; with no bound nothing is dropped."""
    curve = [o for o in outcomes if o.factor is None or (o.level, o.overflow) == (level, overflow)]
    points = sorted((outcome.heaviest_load, outcome.dropped) for outcome in curve)
    loads, dropped = zip(*points, strict=True)
    return float(np.interp(load, loads, dropped)) if loads[0] <= load <= loads[-1] else None


if __name__ == "__main__":
    main()
