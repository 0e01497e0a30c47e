"""`specmoe import`: turn another engine's routing record into a profile."""

import json
import time
from pathlib import Path
from typing import Any

import click

A_PATH: Any = click.Path(path_type=Path)


@click.command(name="import")
@click.argument("source", type=A_PATH)
@click.option("--from", "kind", type=click.Choice(["npz"]), required=True, help="What SOURCE is.")
@click.option("-o", "--output", type=A_PATH, required=True, help="The profile to write.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--sample-tokens", type=int, help="Tokens to keep one by one.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="Which requests the sample takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(source: Path, kind: str, output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Read SOURCE, a record of another engine's routing, and write it as a profile.

    An npz trace holds `expert_ids` [tokens, layers, top-k] and `num_experts`, and optionally `token_ids`,
    `request_ids`, `gate_weights`, `domain_ids`, `layer_ids` and `vocab_size`.

    \b
    specmoe import trace.npz --from npz -o routing.profile
    specmoe import trace.npz --from npz -o routing.profile --sample-tokens 200000
    """
    from specmoe.atomic import refuse_existing

    refuse_existing(output, force=force)
    from specmoe.cli.profile_summary import print_summary, summary
    from specmoe.profiler.import_npz import import_npz

    start = time.monotonic()
    routing = import_npz(source, **options)
    numbers = summary(routing, output, time.monotonic() - start)
    routing.save(output, force=force)
    click.echo(json.dumps(numbers)) if as_json else print_summary(numbers)
