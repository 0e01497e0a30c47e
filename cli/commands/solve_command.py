"""`specmoe solve`: compute a placement plan from a profile."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from specmoe.cli.phase_option import phase_option


@click.command(name="solve")
@click.argument("profile_path", metavar="PROFILE", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The plan to write.")
@click.option("--ep-size", type=int, help="How many expert-parallel ranks (GPUs), equal and on one node.")
@click.option("--topology", "topology_path", type=click.Path(path_type=Path), help="A JSON file; replaces --ep-size.")
@click.option("--attention", type=click.Choice(["dp", "tp"]), default="dp", show_default=True)
@click.option("--extra-slots", type=int, default=0, show_default=True, help="Replica slots per rank.")
@click.option(
    "--max-imbalance", type=float, default=1.05, show_default=True, help="Heaviest rank's load over the mean, at most."
)
@click.option("--method", default="auto", show_default=True, help="auto, cluster, ilp, eplb, linear or round_robin.")
@click.option("--replica-choice", type=click.Choice(["static", "cover"]), help="Default: the better one for the plan.")
@click.option("--group-limited", is_flag=True, help="Keep the router's expert groups whole.")
@click.option("--expert-groups", type=int, help="How many groups the router has (n_group in its configuration).")
@click.option("--time-limit", type=float, metavar="SECONDS", help="Stop by then with the best plan so far.")
@phase_option
@click.option(
    "--bound-seconds",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Work on a lower bound; 0: none.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--best-effort", is_flag=True, help="The best reachable plan where the load cap cannot be kept.")
@click.option("--robust", is_flag=True, help="Fewest copies on the worst of the profile's domains, not on average.")
@click.option(
    "--model",
    help="The profiled model (folder or hub name); with tp, ids hardly seen start where the nearest known token does.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--force", is_flag=True, help="Replace an existing plan.")
def command(
    profile_path: Path,
    output: Path,
    ep_size: int | None,
    topology_path: Path | None,
    phase: Any,
    model: str | None,
    as_json: bool,
    force: bool,
    **choices: Any,
) -> None:
    """Compute where the experts of PROFILE's model should sit so that tokens travel least, at an even load.

    Ctrl-C writes the best plan so far; a second one writes nothing.

    \b
    specmoe solve routing.profile -o experts.plan --ep-size 4
    specmoe solve routing.profile -o experts.plan --ep-size 8 --attention tp --extra-slots 1
    specmoe solve routing.profile -o experts.plan --topology two-nodes.json
    specmoe solve routing.profile -o decode.plan --ep-size 8 --phase decode
    """
    from specmoe.atomic import refuse_existing
    from specmoe.cli.interrupt import first_interrupt
    from specmoe.cli.solve_report import SolveBar, report_json, report_lines
    from specmoe.placement.solve import solve
    from specmoe.placement.token_embeddings import TokenEmbeddings
    from specmoe.placement.topology import Topology
    from specmoe.profiler.phase_of_profile import profile_of_phase
    from specmoe.profiler.routing_profile import RoutingProfile

    if (ep_size is None) == (topology_path is None):
        raise click.UsageError("give either --ep-size or --topology")
    refuse_existing(output, force=force, inputs=[profile_path])
    machine = Topology.load(topology_path) if topology_path is not None else Topology.single_node(ep_size or 0)
    profile = profile_of_phase(RoutingProfile.load(profile_path), phase)
    embeddings = None if model is None else TokenEmbeddings.of(model)
    begin = time.monotonic()
    with SolveBar(visible=sys.stderr.isatty()) as bar, first_interrupt() as interrupted:
        plan = solve(
            profile, machine, embeddings=embeddings, on_progress=bar.show, should_stop=interrupted.is_set, **choices
        )
    seconds, stopped = time.monotonic() - begin, interrupted.is_set()
    plan.save(output, force=force)
    if as_json:
        click.echo(json.dumps(report_json(plan, profile, seconds, stopped=stopped)))
        return
    for line in report_lines(plan, profile, seconds, stopped=stopped):
        click.echo(line)
    click.echo(f"wrote {output}")
