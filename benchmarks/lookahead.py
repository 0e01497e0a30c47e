"""Router look-ahead beside the token table: which of them knows better where a token should start a layer (`tp`)?

    python benchmarks/lookahead.py --demo demo

Look-ahead: a layer's own norm and router, applied to the residual stream before the layer's attention, score every
expert; a token's pull to a rank is the probability of the experts that the rank holds. Both pull tokens to ranks by
the contract's rule of equal slices; "balanced" seats them by prices instead, which finds better slices at more cost.
The oracle knows the experts. Writes results/lookahead.{md,json}: remote copies per token on held-out requests.
"""

import argparse
import json
import os
import platform
import shlex
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog

import specmoe
from specmoe.placement.homes import TP_BATCH_TOKENS, seat_tokens
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

RESULTS = Path(__file__).parent / "results"
RANKS = (4, 8)
PRICE_ROUNDS = 400
# Ties are broken by chance, not always for the lowest rank.
JITTER = 1e-3

Floats = NDArray[np.float64]


def main() -> None:
    arguments = _arguments()
    fit = RoutingProfile.load(arguments.demo / "fit.profile")
    sample = _first_requests(RoutingProfile.load(arguments.demo / "heldout.profile"), arguments.tokens)
    ahead = look_ahead(arguments.demo / "model", sample)
    found = []
    for ep_size in RANKS:
        plan = specmoe.solve(fit, Topology.single_node(ep_size), attention="tp", best_effort=True)
        rows = {row: remote_copies(plan, sample, row, ahead[:, row]) for row in range(plan.num_layers)}
        for name in rows[0]:
            layers = [rows[row][name] for row in range(plan.num_layers)]
            found.append({"ranks": ep_size, "homes": name, "mean": float(np.mean(layers)), "layers": layers})
    hit_rate = [_hit_rate(sample, row, ahead[:, row]) for row in range(ahead.shape[1])]
    about = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/lookahead.py", *["--tokens", str(arguments.tokens)]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in ("specmoe", "torch", "transformers")},
        "tokens": sample.num_tokens,
    }
    stored = {"about": about, "hit_rate": hit_rate, "remote_copies_per_token": found}
    (RESULTS / "lookahead.json").write_text(json.dumps(stored, indent=1) + "\n")
    (RESULTS / "lookahead.md").write_text(text := _text(about, hit_rate, found))
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="the folder that make demo filled")
    parser.add_argument("--tokens", type=int, default=40_000, help="whole requests of about so many tokens in all")
    return parser.parse_args()


def _first_requests(profile: RoutingProfile, num_tokens: int) -> RoutingSample:
    sample = profile.require_sample("this benchmark")
    assert sample.request_ids is not None
    assert sample.token_ids is not None
    ends = np.flatnonzero(np.diff(sample.request_ids, append=-1)) + 1
    last = int(ends[min(int(np.searchsorted(ends, num_tokens)), len(ends) - 1)])
    return RoutingSample(
        expert_ids=sample.expert_ids[:last], token_ids=sample.token_ids[:last], request_ids=sample.request_ids[:last]
    )


@torch.inference_mode()
def look_ahead(folder: Path, sample: RoutingSample) -> Floats:
    """float64 [T, L, E]: what every layer's router makes of the stream before its attention, as probabilities."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]

    def keep(layer: Any, args: tuple[torch.Tensor, ...], row: int) -> None:
        stream = layer.post_attention_layernorm(args[0]).flatten(0, 1)
        seen[row].append(torch.nn.functional.linear(stream, layer.mlp.gate.weight).softmax(dim=-1))

    for row, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(partial(keep, row=row))
    assert sample.token_ids is not None
    assert sample.request_ids is not None
    starts = np.flatnonzero(np.diff(sample.request_ids, prepend=-1))
    for request in np.split(sample.token_ids, starts[1:]):
        model(torch.tensor(request[None].astype(np.int64)), use_cache=False)
    return torch.stack([torch.cat(parts) for parts in seen], dim=1).double().numpy()


def _hit_rate(sample: RoutingSample, row: int, ahead: Floats) -> float:
    """The share of a token's experts that are among the K most probable before attention."""
    chosen = sample.expert_ids[:, row]
    guessed = np.argsort(-ahead, axis=1)[:, : chosen.shape[1]]
    return float((guessed[:, :, None] == chosen[:, None, :]).any(axis=2).mean())


def remote_copies(plan: PlacementPlan, sample: RoutingSample, row: int, ahead: Floats) -> dict[str, float]:
    """Remote copies per token of row `row` by each way to choose homes; ahead: float64 [T, E]."""
    copies = _copies_by_home(plan, sample, row)
    table = _table_pull(plan, sample, row)
    pull = ahead @ plan.holds[row].T
    wishes = -copies / plan.top_k + np.random.default_rng(0).random(copies.shape) * JITTER
    ways: dict[str, Callable[[], NDArray[np.int32]]] = {
        "in order": lambda: _seated(np.zeros_like(pull)),
        "table": lambda: _seated(table),
        "look-ahead": lambda: _seated(pull),
        "both": lambda: _seated((table + pull) / 2),
        "oracle": lambda: _seated(wishes),
        "look-ahead, balanced": lambda: _balanced(pull),
        "both, balanced": lambda: _balanced((0.5 * table + pull) / 1.5),
    }
    found = {name: float(copies[np.arange(len(copies)), homes()].mean()) for name, homes in ways.items()}
    return {**found, "oracle, best slices": _best(copies)}


def _copies_by_home(plan: PlacementPlan, sample: RoutingSample, row: int) -> Floats:
    """float64 [T, R]: the remote copies of each token for every home that it could have."""
    num_tokens = sample.num_tokens
    copies = np.empty((num_tokens, plan.ep_size))
    for home in range(plan.ep_size):
        served_by = serve_layer(plan, row, sample.expert_ids[:, row], np.full(num_tokens, home, dtype=np.int32))
        touched = np.zeros((num_tokens, plan.ep_size), dtype=np.bool_)
        touched[np.arange(num_tokens)[:, None], served_by] = True
        touched[:, home] = False
        copies[:, home] = touched.sum(axis=1)
    return copies


def _table_pull(plan: PlacementPlan, sample: RoutingSample, row: int) -> Floats:
    """float64 [T, R]: the table's confidence at its rank."""
    assert plan.token_to_rank is not None
    assert plan.token_confidence is not None
    assert sample.token_ids is not None
    rank = plan.token_to_rank[row][sample.token_ids]
    pull = np.zeros((len(rank), plan.ep_size))
    known = np.flatnonzero(rank >= 0)
    pull[known, rank[known]] = plan.token_confidence[row][sample.token_ids[known]]
    return pull


def _seated(pull: Floats) -> NDArray[np.int32]:
    """int32 [T]: by the plan's rule; a token's confidence is what its best rank is above the mean of the others."""
    best = pull.max(axis=1)
    others = (pull.sum(axis=1) - best) / (pull.shape[1] - 1)
    wanted = np.where(best > 0 if best.min() >= 0 else True, pull.argmax(axis=1), -1)
    return seat_tokens(wanted.astype(np.int16), np.clip(best - others, 0, 1).astype(np.float16), pull.shape[1])


def _balanced(pull: Floats) -> NDArray[np.int32]:
    """int32 [T]: prices, moved until the ranks are asked for evenly, then by what a token loses elsewhere."""
    homes = np.empty(len(pull), dtype=np.int32)
    ep_size = pull.shape[1]
    for start in range(0, len(pull), TP_BATCH_TOKENS):
        batch = pull[start : start + TP_BATCH_TOKENS]
        room = np.array([len(batch) // ep_size + (rank < len(batch) % ep_size) for rank in range(ep_size)])
        price, step = np.zeros(ep_size), 2.0
        for _ in range(PRICE_ROUNDS):
            asked = np.bincount((batch - price).argmax(axis=1), minlength=ep_size)
            price += step * (asked - room) / len(batch)
            step *= 0.99
        worth = batch - price
        top = np.sort(worth, axis=1)
        for token in np.argsort(top[:, -2] - top[:, -1], kind="stable"):
            rank = next(rank for rank in np.argsort(-worth[token], kind="stable") if room[rank] > 0)
            homes[start + token] = rank
            room[rank] -= 1
    return homes


def _best(copies: Floats) -> float:
    """The fewest copies per token of any homes in equal slices, exactly: a transportation problem over equal rows."""
    total, ep_size = 0.0, copies.shape[1]
    for start in range(0, len(copies), TP_BATCH_TOKENS):
        rows, number = np.unique(copies[start : start + TP_BATCH_TOKENS], axis=0, return_counts=True)
        each_row = sparse.kron(sparse.identity(len(rows)), np.ones((1, ep_size)))
        each_rank = sparse.kron(np.ones((1, len(rows))), sparse.identity(ep_size))
        size = number.sum()
        room = [size // ep_size + (rank < size % ep_size) for rank in range(ep_size)]
        total += linprog(rows.ravel(), A_eq=sparse.vstack([each_row, each_rank]), b_eq=[*number, *room]).fun
    return total / len(copies)


def _text(about: dict[str, Any], hit_rate: Sequence[float], found: Sequence[dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    hits = ", ".join(f"{rate:.1%}" for rate in hit_rate)
    lines = [
        "# Router look-ahead beside the token table\n",
        f"The demo's model, {about['tokens']:,} held-out tokens; {versions}; {about['machine']}; {about['date']}. "
        f"`{about['command']}`\n",
        f"Of a token's experts, look-ahead names {hits} (layer by layer). Remote copies per token under `tp`, "
        "by how tokens find their homes:\n",
        "| ranks | homes | mean | layers |",
        "|---|---|---|---|",
    ]
    for row in found:
        layers = ", ".join(f"{copies:.3f}" for copies in row["layers"])
        lines.append(f"| {row['ranks']} | {row['homes']} | {row['mean']:.3f} | {layers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
