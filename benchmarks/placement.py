"""All placement methods on one trace, measured on another: the product's, the baselines and those of the literature.

python benchmarks/placement.py FIT DEV --ranks 4,8 --attention dp,tp --extra-slots 0,1

FIT and DEV are npz traces or profiles; plans are solved on FIT alone. Copies compare only at equal load, and most
published methods know no cap on it: beside each that breaks the cap stands `auto` with a cap at that method's own
imbalance on FIT. Prints one table and writes it, with every figure, to benchmarks/results/placement-NAME.{md,json}.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))

from published import CAN_REPLICATE, METHODS

from specmoe.placement.check import check_plan
from specmoe.placement.metrics import PlacementMetrics, mean_metrics, measure_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import Attention, PlacementPlan
from specmoe.placement.solve import METHODS as SOLVE_METHODS
from specmoe.placement.solve import solve
from specmoe.placement.topology import Topology
from specmoe.profiler.import_npz import import_npz
from specmoe.profiler.routing_profile import RoutingProfile

RESULTS = Path(__file__).parent / "results"
PRODUCT_METHODS = tuple(method for method in SOLVE_METHODS if method != "ilp")  # "ilp" is for small models
WITHOUT_REPLICAS = ("linear", "round_robin", *sorted(set(METHODS) - CAN_REPLICATE))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a plan is asked for."""

    ranks: int
    attention: Attention
    extra_slots: int

    @property
    def title(self) -> str:
        return f"{self.ranks} ranks, {self.attention}, {self.extra_slots} extra slots a rank"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one case; held_out is measured on DEV, objective, bound and gap are on FIT.

    as_uneven: `auto` on DEV, where the method breaks the cap and `auto` was let do so as much.
    """

    case: Case
    method: str
    held_out: PlacementMetrics
    as_uneven: PlacementMetrics | None
    objective: float | None
    bound: float | None
    gap: float | None
    seconds: float


def load_trace(path: Path) -> RoutingProfile:
    return import_npz(path) if path.suffix == ".npz" else RoutingProfile.load(path)


def solve_case(method: str, case: Case, fit: RoutingProfile, max_imbalance: float, seed: int) -> PlacementPlan:
    """The plan of one method, the product's or a published one's."""
    topology = Topology.single_node(case.ranks)
    asked: dict[str, Any] = {
        "attention": case.attention,
        "extra_slots": case.extra_slots,
        "max_imbalance": max_imbalance,
        "seed": seed,
    }
    if method in METHODS:
        return METHODS[method](fit, topology, SolveOptions(**asked))
    return solve(fit, topology, method=method, best_effort=True, **asked)


def measure(
    method: str, case: Case, traces: tuple[RoutingProfile, RoutingProfile], max_imbalance: float, seed: int
) -> Row:
    """Solve on the first trace, time it, check the plan, and measure it on the second."""
    fit, dev = traces
    start = time.perf_counter()
    plan = solve_case(method, case, fit, max_imbalance, seed)
    seconds = time.perf_counter() - start
    report = check_plan(plan, fit)
    report.require_legal()
    return Row(
        case=case,
        method=method,
        held_out=_means(plan, dev),
        as_uneven=auto_as_uneven(plan, case, traces, max_imbalance, seed),
        objective=report.objective,
        bound=plan.bound,
        gap=plan.gap,
        seconds=seconds,
    )


def auto_as_uneven(
    plan: PlacementPlan, case: Case, traces: tuple[RoutingProfile, RoutingProfile], max_imbalance: float, seed: int
) -> PlacementMetrics | None:
    """What `auto` reaches on DEV under a cap at the mean imbalance that `plan` has on FIT, if that is above the cap."""
    fit, dev = traces
    imbalance = _means(plan, fit).load_imbalance
    if plan.method == "auto" or imbalance <= max_imbalance:
        return None
    topology = Topology.single_node(case.ranks)
    attention, slots = case.attention, case.extra_slots
    allowed = solve(
        fit, topology, attention=attention, extra_slots=slots, max_imbalance=imbalance, seed=seed, bound_seconds=0.0
    )
    return _means(allowed, dev)


def _means(plan: PlacementPlan, profile: RoutingProfile) -> PlacementMetrics:
    return mean_metrics(measure_plan(plan, profile.require_sample("the benchmark")))


def rows(
    cases: list[Case], methods: list[str], run: Callable[[str, Case], Row], say: Callable[[str], None]
) -> Iterator[Row]:
    for case in cases:
        for method in methods:
            if case.extra_slots and method in WITHOUT_REPLICAS:
                continue
            say(f"{case.title}: {method}")
            yield run(method, case)


def markdown(results: list[Row], about: dict[str, Any]) -> str:
    """The table, and what one needs to read and repeat it."""
    lines = [
        f"# Placement methods, solved on {about['fit']}, measured on {about['dev']}",
        "",
        f"Load cap {about['max_imbalance']} on {about['fit']}; seed {about['seed']}; "
        + ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        + f"; {about['machine']}. Copies compare only at equal load: `auto as uneven` is what `auto` reaches, load "
        f"imbalance in brackets, under a cap at the mean imbalance that the row's method has on {about['fit']}.",
        "",
        "| ranks | attention | extra slots | method | remote copies per token | local activation | load imbalance "
        "| auto as uneven | token imbalance | seconds | bound | gap |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        metrics, case, equal = row.held_out, row.case, row.as_uneven
        cells = [
            str(case.ranks),
            case.attention,
            str(case.extra_slots),
            row.method,
            f"{metrics.remote_copies_per_token:.3f}",
            f"{metrics.local_activation_rate:.1%}",
            f"{metrics.load_imbalance:.3f}",
            "" if equal is None else f"{equal.remote_copies_per_token:.3f} ({equal.load_imbalance:.3f})",
            f"{metrics.token_imbalance:.3f}",
            f"{row.seconds:.1f}",
            "" if row.bound is None else f"{row.bound:.3f}",
            "" if row.gap is None else f"{row.gap:.1%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@click.command()
@click.argument("fit", type=click.Path(path_type=Path, exists=True))
@click.argument("dev", type=click.Path(path_type=Path, exists=True))
@click.option("--ranks", default="4,8", show_default=True)
@click.option("--attention", default="dp,tp", show_default=True)
@click.option("--extra-slots", default="0,1", show_default=True)
@click.option("--methods", default=",".join((*PRODUCT_METHODS, *METHODS)), show_default=True)
@click.option("--max-imbalance", default=1.05, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--name", help="Of the files in benchmarks/results; FIT's by default.")
def main(
    fit: Path,
    dev: Path,
    ranks: str,
    attention: str,
    extra_slots: str,
    methods: str,
    max_imbalance: float,
    seed: int,
    name: str | None,
) -> None:
    traces = load_trace(fit), load_trace(dev)
    settings = product(map(int, split(ranks)), split(attention), map(int, split(extra_slots)))
    cases = [Case(ranks=r, attention=a, extra_slots=n) for r, a, n in settings]  # type: ignore[arg-type]
    about = {
        "fit": fit.name,
        "dev": dev.name,
        "fit_fingerprint": traces[0].fingerprint,
        "dev_fingerprint": traces[1].fingerprint,
        "max_imbalance": max_imbalance,
        "seed": seed,
        "versions": {package: version(package) for package in ("specmoe", "numpy", "scipy", "scikit-learn", "ortools")}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    results: list[Row] = []
    for row in rows(
        cases,
        split(methods),
        lambda method, case: measure(method, case, traces, max_imbalance, seed),
        lambda text: click.echo(text, err=True),
    ):
        results.append(row)
    table = markdown(results, about)
    click.echo(table)
    stem = f"placement-{name or fit.stem}"
    (RESULTS / f"{stem}.md").write_text(table, encoding="utf-8")
    record = {"about": about, "rows": [asdict(row) for row in results]}
    (RESULTS / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
