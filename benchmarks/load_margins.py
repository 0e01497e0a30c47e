"""What a tighter load ceiling in the search buys on new text where experts are many: synthetic routing, few layers.

python benchmarks/load_margins.py

Solves the same profile under several parts of the allowed imbalance and measures on other texts of the same model: as
long as the profile, and a quarter of that. Writes benchmarks/results/load-margins.{json,md}.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from solver_suite.synthetic import TraceSize, synthetic_profile

from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solve import solve
from specmoe.profiler.routing_profile import RoutingProfile

RESULTS = Path(__file__).parent / "results"
SIZE = TraceSize(layers=2, experts=256, top_k=8, tokens=200_000, vocabulary=129_280)
RANKS = 32
MARGINS = (0.1, 0.5, 1.0)
CASES = (("tp", 0), ("dp", 1))
TEXTS = {"same_length": (200_000, (1, 2)), "quarter": (50_000, (3, 4))}


def measured(plan: PlacementPlan, texts: dict[str, list[RoutingProfile]]) -> dict[str, Any]:
    """Copies per token and heaviest over mean rank, as expected and the means over texts of each length."""
    found: dict[str, Any] = {"expected_imbalance": plan.predicted.get("held_out_load_imbalance")}
    for name, profiles in texts.items():
        metrics = [mean_metrics(measure_plan(plan, other.require_sample("the benchmark"))) for other in profiles]
        found[name] = {
            "copies": float(np.mean([one.remote_copies_per_token for one in metrics])),
            "imbalance": float(np.mean([one.load_imbalance for one in metrics])),
        }
    return found


@click.command()
def main() -> None:
    profile = synthetic_profile(SIZE)
    texts = {
        name: [synthetic_profile(replace(SIZE, tokens=tokens), text_seed=seed) for seed in seeds]
        for name, (tokens, seeds) in TEXTS.items()
    }
    rows = []
    for attention, extra_slots in CASES:
        asked: dict[str, Any] = {"attention": attention, "extra_slots": extra_slots}
        asked |= {"best_effort": True, "bound_seconds": 0.0}
        rows.append({**asked, "margin": "EPLB", **measured(solve(profile, RANKS, method="eplb", **asked), texts)})
        for margin in MARGINS:
            with patch("specmoe.placement.solvers.auto.margins_for", lambda *_, margin=margin: (margin,)):
                rows.append({**asked, "margin": margin, **measured(solve(profile, RANKS, **asked), texts)})
            click.echo(json.dumps(rows[-1]))
    about = {"size": asdict(SIZE), "ranks": RANKS, "command": "python benchmarks/load_margins.py"}
    (RESULTS / "load-margins.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    (RESULTS / "load-margins.md").write_text(_page(rows), encoding="utf-8")


def _page(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Load margins where experts are many",
        "",
        f"Synthetic routing, {SIZE.layers} layers, {SIZE.experts} experts, top-{SIZE.top_k}, {SIZE.tokens:,} tokens, "
        f"{RANKS} ranks, cap 1.05; `python benchmarks/load_margins.py`. Copies per token (imbalance), means over two "
        "other texts of each length.",
        "",
        "| attention, extra slots | part of the slack | text as long as the profile | a quarter of that | expected |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        same, quarter = (f"{row[name]['copies']:.3f} ({row[name]['imbalance']:.3f})" for name in TEXTS)
        expected = "" if row["expected_imbalance"] is None else f"{row['expected_imbalance']:.3f}"
        lines.append(
            f"| {row['attention']}, {row['extra_slots']} | {row['margin']} | {same} | {quarter} | {expected} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
