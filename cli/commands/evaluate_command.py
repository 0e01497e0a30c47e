"""`specmoe evaluate`: what a trace would cost under plans, and under what engines do today."""

import json
import sys
from pathlib import Path

import click

from specmoe.errors import UsageError


@click.command(name="evaluate")
@click.argument("plans", metavar="PLAN...", nargs=-1, required=True)
@click.option("--profile", "profile", required=True, type=click.Path(path_type=Path), help="The trace to replay.")
@click.option("--layers", is_flag=True, help="Print a second table, layer by layer.")
@click.option("--capacity", metavar="FACTORS", help="Also tell what capacity bounds would cost, such as 1.0,1.5,2.0.")
@click.option("--json", "as_json", is_flag=True, help="Print every metric, per layer and mean, as JSON.")
def command(plans: tuple[str, ...], profile: Path, layers: bool, capacity: str | None, as_json: bool) -> None:
    """Replay the trace in a profile under each PLAN, and under linear, round_robin and eplb.

    Judge a plan on text that it was not solved from. `eplb` has the plan's number of slots and is fitted to the very
    trace that it is judged on.

    \b
    specmoe evaluate experts.plan --profile heldout.profile
    specmoe evaluate small.plan large.plan --profile heldout.profile --layers
    specmoe evaluate experts.plan --profile heldout.profile --capacity 1.0,1.5,2.0
    specmoe evaluate experts.plan --profile heldout.profile --json > metrics.json
    """
    from rich.console import Console
    from tqdm import tqdm

    from specmoe.cli.evaluation_table import capacity_table, evaluation_table, layer_table
    from specmoe.placement.evaluate import evaluate

    factors = _parse_factors(capacity)
    with tqdm(desc="replaying", unit=" placements", leave=False, disable=not sys.stderr.isatty()) as bar:
        evaluation = evaluate(plans, profile, capacity=factors, on_result=lambda _: bar.update())
    if as_json:
        click.echo(json.dumps(evaluation.to_json()))
        return
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(evaluation_table(evaluation))
    if layers:
        console.print()
        console.print(layer_table(evaluation))
    if factors:
        console.print()
        console.print(capacity_table(evaluation))


def _parse_factors(text: str | None) -> list[float]:
    try:
        return [] if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--capacity is {text!r}, numbers such as 1.0,1.5,2.0 were expected") from error
