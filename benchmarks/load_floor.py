"""How even loads can be on other requests: placements drawn at random among those that are even on the profile.

python benchmarks/load_floor.py FIT DEV --ranks 4,8

FIT and DEV are npz traces or profiles. Such placements know nothing but loads, so what their heaviest rank has on DEV
is chance in FIT's and DEV's requests, or drift from one to the other; redraws of FIT's own requests, as many as DEV
has, say how much of that is chance. Writes benchmarks/results/load-floor.json.
"""

import json
import sys
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from placement import RESULTS, load_trace

from specmoe.placement.homes import request_starts
from specmoe.profiler.routing_profile import RoutingProfile

EVEN = 1.005
SWAPS = 2000
REDRAWS = 200


def pairs_of_requests(trace: RoutingProfile) -> np.ndarray:
    """float64 [L, Q, E]: each request's (token, expert) pairs."""
    sample = trace.require_sample("the benchmark")
    starts = request_starts(sample.request_ids, sample.num_tokens)
    request = np.repeat(np.arange(len(starts)), np.diff(starts, append=sample.num_tokens))
    pairs = np.zeros((trace.num_layers, len(starts), trace.num_logical_experts))
    for layer in range(trace.num_layers):
        np.add.at(pairs[layer], (request[:, None], sample.expert_ids[:, layer]), 1.0)
    return pairs


def heaviest(load: np.ndarray) -> np.ndarray:
    """The heaviest rank's load over the mean, of loads [..., R]."""
    return load.max(axis=-1) / load.mean(axis=-1)


def even_placement(load: np.ndarray, ranks: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [E, R], one 1 a row: a random placement, experts of the heaviest rank swapped until it is even."""
    place = rng.permutation(np.repeat(np.arange(ranks), len(load) // ranks))
    for _ in range(SWAPS):
        filled = np.bincount(place, weights=load, minlength=ranks)
        top = int(filled.argmax())
        if heaviest(filled) <= EVEN:
            break
        mine, others = int(rng.choice(np.flatnonzero(place == top))), np.flatnonzero(place != top)
        moved = load[mine] - load[others]
        after = np.maximum(filled[top] - moved, filled[place[others]] + moved)
        other = int(others[after.argmin()])
        # Now and then a swap that does not help, to leave a dead end.
        if after.min() < filled[top] or rng.random() < 0.3:
            place[mine], place[other] = place[other], place[mine]
    return np.eye(ranks)[place]


@click.command()
@click.argument("fit", type=click.Path(path_type=Path, exists=True))
@click.argument("dev", type=click.Path(path_type=Path, exists=True))
@click.option("--ranks", default="4,8", show_default=True)
@click.option("--placements", default=40, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(fit: Path, dev: Path, ranks: str, placements: int, seed: int) -> None:
    known, new = pairs_of_requests(load_trace(fit)), pairs_of_requests(load_trace(dev))
    rng = np.random.default_rng(seed)
    Q = known.shape[1]
    times = {name: rng.multinomial(count, np.full(Q, 1 / Q), size=REDRAWS) for name, count in
             (("redraws_as_many_as_fit", Q), ("redraws_as_many_as_dev", new.shape[1]))}  # fmt: skip
    rows = []
    for ep_size in map(int, ranks.split(",")):
        found: dict[str, list[list[float]]] = {name: [] for name in ("fit", "dev", *times)}
        for layer in range(len(known)):
            places = [even_placement(known[layer].sum(axis=0), ep_size, rng) for _ in range(placements)]
            found["fit"].append([float(heaviest(known[layer].sum(axis=0) @ place)) for place in places])
            found["dev"].append([float(heaviest(new[layer].sum(axis=0) @ place)) for place in places])
            for name, drawn in times.items():
                of_rank = [drawn @ (known[layer] @ place) for place in places]
                found[name].append([float(np.median(heaviest(load))) for load in of_rank])
        row = {"ranks": ep_size, **{name: float(np.mean(values)) for name, values in found.items()}}
        row["dev_spread_of_placements"] = float(np.mean(found["dev"], axis=0).std())
        row["dev_best_of_each_layer"] = float(np.min(found["dev"], axis=1).mean())
        rows.append(row)
        click.echo(json.dumps(row))
    about = {"fit": fit.name, "dev": dev.name, "placements": placements, "seed": seed}
    (RESULTS / "load-floor.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
