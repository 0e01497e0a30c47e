"""How long `RequestRouter.route` takes: microseconds a request, by length of prompt and number of ranks.

python benchmarks/request_router.py

Random token ids of a vocabulary of 128,256, as a list and as an array. Writes benchmarks/results/request-router.json.
"""

import json
import os
import platform
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.request_router import RequestRouter
from specmoe.placement.topology import Topology

RESULT = Path(__file__).parent / "results/request-router.json"
VOCABULARY = 128_256
PROMPTS = (16, 256, 4096)
RANKS = (8, 64)
REQUESTS = 2000


def plan_for(ranks: int) -> PlacementPlan:
    """A plan of one expert a rank, with random affinity."""
    rng = np.random.default_rng(0)
    slots = np.arange(ranks, dtype=np.int32)
    return PlacementPlan(
        topology=Topology.single_node(ranks),
        num_logical_experts=ranks,
        top_k=2,
        attention="dp",
        replica_choice="static",
        layer_ids=np.zeros(1, dtype=np.int32),
        physical_to_logical=slots[None],
        rank_of_physical=slots,
        dispatch_slot=np.broadcast_to(slots, (1, ranks, ranks)).copy(),
        token_affinity=rng.random((VOCABULARY, ranks)).astype(np.float16),
        method="random",
    )


def microseconds(router: RequestRouter, prompts: list[Any]) -> dict[str, float]:
    """Median and 99th percentile over `prompts`, each routed once."""
    router.route(prompts[0])
    taken = []
    for prompt in prompts:
        begin = time.perf_counter()
        router.route(prompt)
        taken.append(1e6 * (time.perf_counter() - begin))
    return {"median": round(float(np.median(taken)), 2), "p99": round(float(np.quantile(taken, 0.99)), 2)}


def main() -> None:
    """Print one line a case, and write them all."""
    rng = np.random.default_rng(0)
    rows = []
    for ranks in RANKS:
        router = RequestRouter(plan_for(ranks))
        for length in PROMPTS:
            arrays = list(rng.integers(0, VOCABULARY, (REQUESTS, length)))
            row = {
                "ranks": ranks,
                "prompt_tokens": length,
                "array_us": microseconds(router, arrays),
                "list_us": microseconds(router, [array.tolist() for array in arrays]),
            }
            rows.append(row)
            print(row)
    RESULT.write_text(
        json.dumps(
            {
                "command": " ".join(["python", *sys.argv]),
                "date": date.today().isoformat(),
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "versions": {name: version(name) for name in ("specmoe", "numpy", "numba")},
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
