"""`specmoe evaluate`: what a trace would cost under plans, and under what engines do today."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from specmoe.cli.factors import parse_factors
from specmoe.cli.phase_option import phase_option


@click.command(name="evaluate")
@click.argument("plans", metavar="PLAN...", nargs=-1, required=True)
@click.option("--profile", "profile", required=True, type=click.Path(path_type=Path), help="The trace to replay.")
@phase_option
@click.option("--layers", is_flag=True, help="Print a second table, layer by layer.")
@click.option("--by-domain", is_flag=True, help="Print a table by domain: data files, or values of --domain-column.")
@click.option("--capacity", metavar="FACTORS", help="Also tell what capacity bounds would cost, such as 1.0,1.5,2.0.")
@click.option("--row-bytes", type=int, help="Bytes of one hidden state: adds a step time modelled on the plan's links.")
@click.option("--pair-us", type=float, default=0.0, help="Microseconds of one expert for one token, in that time.")
@click.option("--json", "as_json", is_flag=True, help="Print every metric, per layer and mean, as JSON.")
def command(
    plans: tuple[str, ...],
    profile: Path,
    phase: Any,
    layers: bool,
    by_domain: bool,
    capacity: str | None,
    row_bytes: int | None,
    pair_us: float,
    as_json: bool,
) -> None:
    """Replay the trace in a profile under each PLAN, and under linear, round_robin and eplb.

    Judge a plan on text that it was not solved from. `eplb` has the plan's number of slots and is fitted to the very
    trace that it is judged on.

    \b
    specmoe evaluate experts.plan --profile heldout.profile
    specmoe evaluate small.plan large.plan --profile heldout.profile --layers
    specmoe evaluate experts.plan --profile heldout.profile --by-domain
    specmoe evaluate experts.plan --profile heldout.profile --capacity 1.0,1.5,2.0
    specmoe evaluate experts.plan --profile heldout.profile --row-bytes 8192 --pair-us 0.05
    specmoe evaluate experts.plan --profile heldout.profile --json > metrics.json
    """
    from tqdm import tqdm

    from specmoe.cli.evaluation_table import capacity_table, domain_table, evaluation_table, layer_table
    from specmoe.cli.terminal import console
    from specmoe.placement.evaluate import evaluate
    from specmoe.placement.step_time import StepModel
    from specmoe.profiler.phase_of_profile import profile_of_phase
    from specmoe.profiler.routing_profile import RoutingProfile

    factors = parse_factors(capacity)
    step_model = None if row_bytes is None else StepModel(row_bytes=row_bytes, pair_us=pair_us)
    trace = profile_of_phase(RoutingProfile.load(profile), phase)
    with tqdm(desc="replaying", unit=" placements", leave=False, disable=not sys.stderr.isatty()) as bar:
        evaluation = evaluate(
            plans,
            trace,
            capacity=factors,
            step_model=step_model,
            by_domain=by_domain,
            on_result=lambda _: bar.update(),
        )
    if as_json:
        click.echo(json.dumps(evaluation.to_json()))
        return
    screen = console()
    screen.print(evaluation_table(evaluation))
    if layers:
        screen.print()
        screen.print(layer_table(evaluation))
    if by_domain:
        screen.print()
        screen.print(domain_table(evaluation))
    if factors:
        screen.print()
        screen.print(capacity_table(evaluation))
