"""What nearest tokens by embedding gain for token ids that a profile has hardly seen, on text that it has not.

python benchmarks/nearest_tokens.py MODEL FIT.profile HELDOUT.profile

Cuts the fitted profile to its first few requests, so that ids of the held-out text are missing from it, solves with
attention tp with and without the model's embeddings, and measures on the held-out text: all tokens, those of unseen
ids, and those of ids seen once. MODEL and the profiles are those that `make demo` leaves in demo/. Writes
benchmarks/results/nearest-tokens.{json,md}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from placement import RESULTS

from specmoe.placement.homes import homes_of, request_starts
from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solve import solve
from specmoe.placement.solvers.chosen_rows import profile_of_rows
from specmoe.placement.token_embeddings import TokenEmbeddings
from specmoe.profiler.routing_profile import RoutingProfile

REQUESTS = (8, 24, 64, 200)
SLOTS = (0, 2)


def first_requests(profile: RoutingProfile, requests: int) -> RoutingProfile:
    """The profile of its sample's first `requests` requests."""
    sample = profile.require_sample("the benchmark")
    starts = np.append(request_starts(sample.request_ids, sample.num_tokens), sample.num_tokens)
    return profile_of_rows(profile, np.arange(starts[min(requests, len(starts) - 1)]))


def measured_on(plan: PlacementPlan, trace: RoutingProfile, times_seen: np.ndarray) -> dict[str, Any]:
    """Copies per token and local share of all tokens, and of those whose id was seen so often, at their homes."""
    sample, homes = trace.require_sample("the benchmark"), homes_of(plan, trace.require_sample("the benchmark"))
    of_token = times_seen[sample.token_ids]
    found: dict[str, Any] = {}
    for name, chosen in (("all", of_token >= 0), ("unseen", of_token == 0), ("seen_once", of_token == 1)):
        rows = np.flatnonzero(chosen)
        metrics = mean_metrics(measure_plan(plan, sample.rows(rows), homes[:, rows]))
        found[name] = {
            "share_of_tokens": len(rows) / sample.num_tokens,
            "remote_copies_per_token": metrics.remote_copies_per_token,
            "local_activation_rate": metrics.local_activation_rate,
            "load_imbalance": metrics.load_imbalance,
        }
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in pairs, without and with embeddings, as Markdown."""
    lines = [
        "| requests, tokens fitted | extra slots | unseen, of held-out tokens | copies per token | of unseen ids "
        "| of ids seen once | load imbalance | expected |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for none, near in zip(rows[::2], rows[1::2], strict=True):
        changes = [
            f"{without:.3f} → {with_:.3f} ({with_ / without - 1:+.1%})"
            for name in ("all", "unseen", "seen_once")
            for without, with_ in [tuple(row[name]["remote_copies_per_token"] for row in (none, near))]
        ]
        lines.append(
            f"| {none['requests']}, {none['tokens']:,} | {none['extra_slots']} "
            f"| {none['unseen']['share_of_tokens']:.1%} | {' | '.join(changes)} "
            f"| {none['all']['load_imbalance']:.3f} → {near['all']['load_imbalance']:.3f} "
            f"| {none['expected']:.3f} → {near['expected']:.3f} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.argument("fit", type=click.Path(path_type=Path, exists=True))
@click.argument("heldout", type=click.Path(path_type=Path, exists=True))
@click.option("--ranks", default=4, show_default=True)
def main(model: Path, fit: Path, heldout: Path, ranks: int) -> None:
    profile, trace = RoutingProfile.load(fit), RoutingProfile.load(heldout)
    embeddings, rows = TokenEmbeddings.of(model), []
    for requests in REQUESTS:
        small = first_requests(profile, requests)
        token_ids = small.require_sample("the benchmark").token_ids
        times_seen = np.bincount(token_ids, minlength=profile.vocab_size or 0)
        for extra_slots in SLOTS:
            for given in (None, embeddings):
                plan = solve(
                    small, ranks, attention="tp", extra_slots=extra_slots, embeddings=given,
                    bound_seconds=0, best_effort=True,
                )  # fmt: skip
                row = {"requests": requests, "tokens": small.num_tokens, "extra_slots": extra_slots}
                row |= {"embeddings": given is not None, "expected": plan.predicted["held_out_objective"]}
                rows.append(row | measured_on(plan, trace, times_seen))
    about = {"ranks": ranks, "held_out_tokens": trace.num_tokens, "command": "python benchmarks/nearest_tokens.py"}
    (RESULTS / "nearest-tokens.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    head = (
        "# Nearest tokens by embedding for ids hardly seen\n\n"
        f"The demo's model, {ranks} ranks, attention tp, {trace.num_tokens:,} held-out tokens; `python "
        "benchmarks/nearest_tokens.py demo/model demo/fit.profile demo/heldout.profile`. Each figure without → with "
        "the embeddings; in brackets the change.\n\n"
    )
    (RESULTS / "nearest-tokens.md").write_text(head + table(rows) + "\n", encoding="utf-8")
    click.echo(table(rows))


if __name__ == "__main__":
    main()
