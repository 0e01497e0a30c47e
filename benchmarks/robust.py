"""Plans for some data sets, measured on others: `solve --robust` beside the plain mode.

python benchmarks/robust.py FIT DEV --ranks 4 --attention tp --extra-slots 0

FIT and DEV are npz traces or profiles whose tokens carry domain ids. Plans are solved on half of FIT's domains, by
turns the even and the odd ones, and measured on DEV: on the domains that they were fitted to, and on the others. Writes
benchmarks/results/robust-NAME.json.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from placement import RESULTS, load_trace

from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solve import solve
from specmoe.placement.solvers.chosen_rows import profile_of_rows
from specmoe.placement.solvers.domain_mixtures import domain_losses
from specmoe.profiler.routing_profile import RoutingProfile

# Domains with fewer tokens than this say little.
FEWEST_TOKENS = 1000


def of_domains(profile: RoutingProfile, domains: np.ndarray) -> RoutingProfile:
    """The profile of these domains' requests."""
    sample = profile.require_sample("the benchmark")
    assert sample.domain_ids is not None
    return profile_of_rows(profile, np.flatnonzero(np.isin(sample.domain_ids, domains)))


def measured_on(plan: PlacementPlan, trace: RoutingProfile, domains: np.ndarray) -> dict[str, float]:
    """Mean and worst domain of one plan on a trace of these domains."""
    trace = of_domains(trace, domains)
    metrics = mean_metrics(measure_plan(plan, trace.require_sample("the benchmark")))
    return {
        "remote_copies_per_token": metrics.remote_copies_per_token,
        "load_imbalance": metrics.load_imbalance,
        "worst_domain": float(domain_losses(plan=plan, profile=trace, domains=domains).max()),
    }


def numbered_alike(trace: RoutingProfile, other: RoutingProfile) -> RoutingProfile:
    """The trace with its domains numbered as `other` numbers them, where both know their domains' names."""
    sample = trace.require_sample("the benchmark")
    if trace.domains is None or other.domains is None or sample.domain_ids is None:
        return trace
    number = np.array([other.domains.names.index(name) for name in trace.domains.names])
    return replace(trace, domains=None, sample=replace(sample, domain_ids=number[sample.domain_ids].astype(np.int16)))


def large_domains(profile: RoutingProfile) -> np.ndarray:
    sample = profile.require_sample("the benchmark")
    if sample.domain_ids is None:
        raise click.UsageError("the traces need domain ids")
    domains, tokens = np.unique(sample.domain_ids, return_counts=True)
    return domains[tokens >= FEWEST_TOKENS]


@click.command()
@click.argument("fit", type=click.Path(path_type=Path, exists=True))
@click.argument("dev", type=click.Path(path_type=Path, exists=True))
@click.option("--ranks", default=4, show_default=True)
@click.option("--attention", type=click.Choice(["dp", "tp"]), default="tp", show_default=True)
@click.option("--extra-slots", default=0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--name", help="Of the file in benchmarks/results; FIT's by default.")
def main(fit: Path, dev: Path, ranks: int, attention: Any, extra_slots: int, seed: int, name: str | None) -> None:
    traces = [load_trace(fit)]
    traces.append(numbered_alike(load_trace(dev), traces[0]))
    domains = np.intersect1d(large_domains(traces[0]), large_domains(traces[1]))
    rows = []
    for half in (0, 1):
        known, new = domains[half::2], domains[1 - half :: 2]
        profile = of_domains(traces[0], known)
        for robust in (False, True):
            begin = time.perf_counter()
            plan = solve(
                profile, ranks, attention=attention, extra_slots=extra_slots, seed=seed, robust=robust,
                best_effort=True, bound_seconds=0,
            )  # fmt: skip
            row = {"fitted_domains": known.tolist(), "robust": robust, "seconds": time.perf_counter() - begin}
            row["profile_domains"] = domain_losses(plan=plan, profile=profile, domains=known).tolist()
            row["known_domains"] = measured_on(plan, traces[1], known)
            row["new_domains"] = measured_on(plan, traces[1], new)
            row["note"] = plan.predicted.get("robust")
            rows.append(row)
            click.echo(json.dumps(row))
    about = {"fit": fit.name, "dev": dev.name, "ranks": ranks, "attention": attention, "extra_slots": extra_slots}
    path = RESULTS / f"robust-{name or fit.stem}.json"
    path.write_text(json.dumps({"about": {**about, "seed": seed}, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
