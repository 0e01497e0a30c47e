"""`specmoe report`: a page to look at, and plots for papers, on what plans do to a trace."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from specmoe.cli.factors import parse_factors
from specmoe.cli.phase_option import phase_option

A_PATH: Any = click.Path(path_type=Path)


@click.command(name="report")
@click.argument("plans", metavar="PLAN...", nargs=-1, required=True, type=A_PATH)
@click.option("--profile", "profile", metavar="HELDOUT", required=True, type=A_PATH, help="The trace to replay.")
@click.option("-o", "--output", metavar="PAGE", required=True, type=A_PATH, help="The HTML file to write.")
@click.option("--png", "png", metavar="DIR", type=A_PATH, help="Also write the main plots, as PNG files, into DIR.")
@click.option(
    "--capacity",
    metavar="FACTORS",
    default="1.0,1.25,1.5,2.0,3.0",
    show_default=True,
    help='Capacity bounds to show where the trace has gate weights; "" for none.',
)
@click.option(
    "--since", metavar="OLDER", type=A_PATH, help="An older profile: also tell how far the routing has moved."
)
@phase_option
@click.option("--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print what the page says, and every metric, as JSON.")
def command(
    plans: tuple[Path, ...],
    profile: Path,
    output: Path,
    png: Path | None,
    capacity: str,
    since: Path | None,
    phase: Any,
    force: bool,
    as_json: bool,
) -> None:
    """Replay the trace in a profile under each PLAN, and under linear, round_robin and eplb, and write what happens as
    one page that needs no network: what is gained, each layer and domain, load, co-activation, replicas, token tables,
    traffic and capacity.

    Judge a plan on text that it was not solved from. --png needs matplotlib (pip install 'specmoe[plots]').

    \b
    specmoe report experts.plan --profile heldout.profile -o report.html
    specmoe report small.plan large.plan --profile heldout.profile -o report.html
    specmoe report experts.plan --profile heldout.profile -o report.html --png plots/
    specmoe report experts.plan --profile june.profile --since january.profile -o report.html
    specmoe report experts.plan --profile heldout.profile -o report.html --json > report.json
    """
    from tqdm import tqdm

    from specmoe.placement.report.report import report
    from specmoe.profiler.phase_of_profile import profile_of_phase

    factors = parse_factors(capacity)
    with tqdm(desc="replaying", unit=" steps", leave=False, disable=not sys.stderr.isatty()) as bar:
        written = report(
            plans,
            profile,
            output,
            plots=png,
            capacity=factors,
            since=since,
            part=partial(profile_of_phase, phase=phase),
            force=force,
            on_step=lambda _: bar.update(),
        )
    if as_json:
        click.echo(json.dumps(written.to_json()))
        return
    click.echo(written.headline)
    click.echo(f"wrote {', '.join(map(str, [*written.plots, written.page]))}")
