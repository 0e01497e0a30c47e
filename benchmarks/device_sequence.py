"""What the device-sequence table of Sem-MoE adds to a token table: measured on a tp plan.

At each layer the table names the rank that a token is likely to need from the ranks that it needed in the last two
layers, and how likely. A token needs the rank that holds most of its experts, among equals the lowest one. The paper
takes whichever of the two tables is surer; multiplying what both say of every rank is measured beside it. Which ranks a
token needed is known after the fact only: a runtime would have to pass it along with the token.

python benchmarks/device_sequence.py FIT DEV --ranks 4
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from placement import RESULTS, load_trace

from specmoe.errors import UsageError
from specmoe.placement.homes import seat_tokens
from specmoe.placement.metrics import layer_traffic
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solve import solve
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingSample

LOOK_BACK = 2
# A token id or a sequence is believed as if the mean token had been seen this many times as well.
PRIOR_TOKENS = {"token id": 2.0, "sequence": 20.0}


@dataclass(frozen=True, kw_only=True)
class Guess:
    """Where each token should sit at one layer: rank int16 [T], -1 = no opinion; sure: float16 [T], 0 to 1."""

    rank: NDArray[np.int16]
    sure: NDArray[np.float16]


def needed_ranks(plan: PlacementPlan, sample: RoutingSample) -> NDArray[np.int64]:
    """int64 [L, T]: the rank that holds most of a token's experts, layer by layer."""
    layers = range(plan.num_layers)
    return np.stack([plan.holds[layer][:, sample.expert_ids[:, layer]].sum(axis=2).argmax(axis=0) for layer in layers])


def sequence_guess(fit: NDArray[np.int64], now: NDArray[np.int64], layer: int, ep_size: int) -> Guess:
    """The rank that tokens with the same last two ranks needed most often at `layer` of the trace `fit` [L, T]."""
    if layer < LOOK_BACK:
        unknown = np.full(now.shape[1], -1, dtype=np.int16)
        return Guess(rank=unknown, sure=np.zeros(now.shape[1], dtype=np.float16))
    seen = np.zeros((ep_size**LOOK_BACK, ep_size), dtype=np.float64)
    np.add.at(seen, (_key(fit, layer, ep_size), fit[layer]), 1)
    # One count for every rank keeps a sequence that was seen once from being certain.
    chance = (seen + 1) / (seen + 1).sum(axis=1, keepdims=True)
    key = _key(now, layer, ep_size)
    return Guess(rank=chance.argmax(axis=1)[key].astype(np.int16), sure=chance.max(axis=1)[key].astype(np.float16))


def table_guess(plan: PlacementPlan, sample: RoutingSample, layer: int) -> Guess:
    """What the plan's token table says."""
    if plan.token_to_rank is None or plan.token_confidence is None or sample.token_ids is None:
        raise UsageError("there is no token table to compare with; give traces with token ids")
    known = (sample.token_ids >= 0) & (sample.token_ids < plan.token_to_rank.shape[1])
    ids = np.where(known, sample.token_ids, 0)
    rank = np.where(known, plan.token_to_rank[layer, ids], np.int16(-1))
    return Guess(rank=rank, sure=np.where(rank >= 0, plan.token_confidence[layer, ids], np.float16(0)))


def surer(first: Guess, second: Guess) -> Guess:
    """Of each token the guess that is surer, the first where both are equally so."""
    takes_first = first.sure >= second.sure
    rank = np.where(takes_first, first.rank, second.rank)
    return Guess(rank=rank, sure=np.where(takes_first, first.sure, second.sure))


def joined_guess(
    plan: PlacementPlan,
    fit: RoutingSample,
    dev: RoutingSample,
    needed: tuple[NDArray[np.int64], NDArray[np.int64]],
    layer: int,
) -> Guess:
    """The rank with most of a token's experts, if its id and its sequence told of that independently.

    needed: int64 [L, T] each, the ranks that the tokens of `fit` and of `dev` needed.
    """
    if fit.token_ids is None or dev.token_ids is None:
        raise UsageError("there is no token table to compare with; give traces with token ids")
    pairs = plan.holds[layer][:, fit.expert_ids[:, layer]].sum(axis=2).T.astype(np.float64)
    score = shrunk_means(pairs, fit.token_ids, dev.token_ids, PRIOR_TOKENS["token id"])
    if layer >= LOOK_BACK:
        keys = _key(needed[0], layer, plan.ep_size), _key(needed[1], layer, plan.ep_size)
        score *= shrunk_means(pairs, *keys, PRIOR_TOKENS["sequence"]) / pairs.mean(axis=0)
    score /= score.sum(axis=1, keepdims=True)
    best = score.max(axis=1)
    others = (1.0 - best) / max(1, plan.ep_size - 1)
    return Guess(rank=score.argmax(axis=1).astype(np.int16), sure=(best - others).astype(np.float16))


def shrunk_means(
    values: NDArray[np.float64], seen: NDArray[np.integer], asked: NDArray[np.integer], prior_tokens: float
) -> NDArray[np.float64]:
    """float64 [N, R]: the mean row of `values` [T, R] of each asked group, drawn towards the mean row of all.

    seen: [T], the group of each row; asked: [N], groups, also such as were not seen.
    """
    groups, row = np.unique(seen, return_inverse=True)
    total = np.zeros((len(groups) + 1, values.shape[1]))
    np.add.at(total, row, values)
    tokens = np.append(np.bincount(row), 0)[:, None]
    mean = (total + prior_tokens * values.mean(axis=0)) / (tokens + prior_tokens)
    found = np.minimum(np.searchsorted(groups, asked), len(groups) - 1)
    known: NDArray[np.float64] = mean[np.where(groups[found] == asked, found, len(groups))]
    return known


def remote_copies(plan: PlacementPlan, fit: RoutingSample, dev: RoutingSample) -> dict[str, float]:
    """Remote copies per token on `dev`, the mean over layers, for each way to guess."""
    before, now = needed_ranks(plan, fit), needed_ranks(plan, dev)
    names = ("neither", "token table", "sequence", "the surer of both", "both multiplied")
    copies: dict[str, list[float]] = {name: [] for name in names}
    for layer in range(plan.num_layers):
        nothing = Guess(rank=np.full(dev.num_tokens, -1, dtype=np.int16), sure=np.zeros(dev.num_tokens, np.float16))
        table, sequence = table_guess(plan, dev, layer), sequence_guess(before, now, layer, plan.ep_size)
        joined = joined_guess(plan, fit, dev, (before, now), layer)
        guesses = (nothing, table, sequence, surer(table, sequence), joined)
        for name, guess in zip(copies, guesses, strict=True):
            homes = seat_tokens(guess.rank, guess.sure, plan.ep_size)
            copies[name].append(layer_traffic(plan, dev, layer, homes).metrics().remote_copies_per_token)
    return {name: float(np.mean(layers)) for name, layers in copies.items()}


def _key(needed: NDArray[np.int64], layer: int, ep_size: int) -> NDArray[np.int64]:
    key: NDArray[np.int64] = needed[layer - 2] * ep_size + needed[layer - 1]
    return key


@click.command()
@click.argument("fit", type=click.Path(path_type=Path, exists=True))
@click.argument("dev", type=click.Path(path_type=Path, exists=True))
@click.option("--ranks", default=4, show_default=True)
@click.option("--extra-slots", default=0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(fit: Path, dev: Path, ranks: int, extra_slots: int, seed: int) -> None:
    """Solve for tp on FIT, and measure on DEV with the token table, with the sequence table and with both."""
    fitted, judged = load_trace(fit), load_trace(dev)
    plan = solve(fitted, Topology.single_node(ranks), attention="tp", extra_slots=extra_slots, seed=seed)
    purpose = "the benchmark"
    copies = remote_copies(plan, fitted.require_sample(purpose), judged.require_sample(purpose))
    record = {"fit": fit.name, "dev": dev.name, "ranks": ranks, "extra_slots": extra_slots, "seed": seed}
    click.echo(json.dumps(record | {"remote_copies_per_token": copies}, indent=1))
    target = RESULTS / f"device-sequence-{fit.stem}-{ranks}-ranks-{extra_slots}-slots.json"
    target.write_text(json.dumps(record | {"remote_copies_per_token": copies}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
