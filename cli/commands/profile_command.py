"""`specmoe profile`: run a model over text and record its routing."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from specmoe.cli.several_values import SeveralValues

A_PATH: Any = click.Path(path_type=Path)


@click.command(name="profile", cls=SeveralValues)
@click.argument("model")
@click.option("--data", "data", metavar="FILE...", type=A_PATH, multiple=True, required=True, help="Text or jsonl.")
@click.option("-o", "--output", type=A_PATH, required=True, help="The profile to write.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: the GPU where there is one]")
@click.option("--dtype", default="auto", show_default="the checkpoint's", help="float32, bfloat16 or float16.")
@click.option("--max-length", type=int, help="Cut longer documents into requests of so many tokens.  [default: 2048]")
@click.option("--batch-tokens", type=int, help="Tokens per forward pass.  [default: 16384 on a GPU, 4096 on a CPU]")
@click.option("--max-tokens", type=int, help="Stop after so many tokens.")
@click.option("--sample-tokens", type=int, default=262_144, show_default=True, help="Tokens to keep one by one.")
@click.option("--domain-column", help="The jsonl key that names a request's domain.  [default: a domain per file]")
@click.option("--seed", type=int, default=0, show_default=True, help="Which requests the sample takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(model: str, data: tuple[Path, ...], output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Run MODEL (a checkpoint folder, or a name on the Hugging Face hub) over text and record its routing.

    A .jsonl line holds `text`, or `prompt` and `completion`, or chat `messages`; any other file is one long text. Use
    text like that which the model will serve: a plan is as good as the profile is typical.

    \b
    specmoe profile MODEL --data text.txt -o routing.profile
    specmoe profile MODEL --data chats.jsonl code.jsonl -o routing.profile --max-tokens 1000000
    specmoe profile allenai/OLMoE-1B-7B-0924 --data text.txt -o routing.profile --dtype bfloat16
    """
    from specmoe.atomic import refuse_existing

    refuse_existing(output, force=force)
    from specmoe.cli.profile_summary import print_summary, summary
    from specmoe.profiler.profile_model import profile

    start = time.monotonic()
    routing = profile(model, data, progress=sys.stderr.isatty(), **options)
    numbers = summary(routing, output, time.monotonic() - start)
    routing.save(output, force=force)
    click.echo(json.dumps(numbers)) if as_json else print_summary(numbers)
