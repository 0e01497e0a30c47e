"""`specmoe drift`: how far two profiles differ, what a plan loses on the newer one, and whether to solve anew."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specmoe.cli.phase_option import phase_option

if TYPE_CHECKING:
    from rich.table import Table

    from specmoe.placement.drift.drift import Drift
    from specmoe.placement.drift.plan_drift import PlanDrift


@click.command(name="drift")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--plan", type=click.Path(path_type=Path), help="The plan in use: what it loses decides the verdict.")
@phase_option
@click.option("--tolerance", type=float, default=0.05, show_default=True, help="The loss that is worth a new plan.")
@click.option(
    "--no-solve", is_flag=True, help="Do not solve anew: hold its cost on NEW against what was to be expected."
)
@click.option("--time-limit", type=float, help="Seconds for solving anew.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split of the new requests.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
def command(
    old: Path,
    new: Path,
    plan: Path | None,
    phase: Any,
    tolerance: float,
    no_solve: bool,
    time_limit: float | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare profile NEW with profile OLD of the same model, and say whether to keep the plan or to re-solve.

    The distance is the share of (token, expert) pairs that went to other experts, beside the distance that two random
    groups of the same requests would have. With --plan a second plan is solved from half of NEW's requests, and both
    are judged on the other half: that is what re-solving is worth. --no-solve is quick: it holds the plan's cost on NEW
    against its cost on OLD or, where it was solved from OLD, against what its solver expected on other requests.

    \b
    specmoe drift january.profile june.profile
    specmoe drift january.profile june.profile --plan experts.plan
    specmoe drift january.profile june.profile --plan experts.plan --no-solve --json
    """
    from specmoe.cli.solve_report import SolveBar
    from specmoe.cli.terminal import console
    from specmoe.placement.drift.drift import drift
    from specmoe.profiler.phase_of_profile import profile_of_phase
    from specmoe.profiler.routing_profile import RoutingProfile

    with SolveBar(visible=sys.stderr.isatty()) as bar:
        found = drift(
            profile_of_phase(RoutingProfile.load(old), phase),
            profile_of_phase(RoutingProfile.load(new), phase),
            plan,
            tolerance=tolerance,
            solve_anew=not no_solve,
            time_limit=time_limit,
            seed=seed,
            on_progress=bar.show,
        )
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    screen = console()
    screen.print(_distances(found))
    if found.plan is not None:
        screen.print(_plan_table(found.plan))
    screen.print(f"{found.verdict}: {found.reason}", soft_wrap=True)


def _distances(found: "Drift") -> "Table":
    from rich.table import Table

    table = Table("", "share of pairs", title="How far the routing moved (mean over layers)", title_justify="left")
    farthest = max(range(len(found.layer_ids)), key=lambda layer: found.distance_of_layer[layer])
    table.add_row("to other experts", f"{found.distance:.1%}")
    table.add_row("  by chance, at most", "unknown" if found.by_chance is None else f"{found.by_chance:.1%}")
    table.add_row(f"  in layer {found.layer_ids[farthest]}, the farthest", f"{found.distance_of_layer[farthest]:.1%}")
    table.add_row(
        "to other pairs of experts", "unknown" if found.pair_distance is None else f"{found.pair_distance:.1%}"
    )
    return table


def _plan_table(drifted: "PlanDrift") -> "Table":
    from rich.table import Table

    table = Table("", "remote copies per token", "served at home", "load imbalance", title=drifted.name)
    expected = drifted.expected
    if expected.remote_copies_per_token is not None and expected.load_imbalance is not None:
        figures = f"{expected.remote_copies_per_token:.3f}", "", f"{expected.load_imbalance:.3f}"
        table.add_row("expected by its solver on other requests", *figures)
    fit = ", which it was solved from"
    rows = [
        (f"plan, on OLD{fit if drifted.old_is_fit else ''}", drifted.on_old),
        (f"plan, on NEW{fit if drifted.new_is_fit else ''}", drifted.on_new),
        ("plan, on half of NEW's requests", drifted.kept),
        ("solved from the other half", drifted.solved_anew),
    ]
    for name, metrics in rows:
        if metrics is not None:
            local = f"{metrics.local_activation_rate:.0%}"
            table.add_row(name, f"{metrics.remote_copies_per_token:.3f}", local, f"{metrics.load_imbalance:.3f}")
    return table
