"""`specmoe profile`: run a model over text and record its routing, on one process or several under torchrun."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specmoe.cli.several_values import SeveralValues
from specmoe.errors import ArtifactError

if TYPE_CHECKING:
    from specmoe.profiler.output_file import OutputFile

A_PATH: Any = click.Path(path_type=Path)


@click.command(name="profile", cls=SeveralValues)
@click.argument("model")
@click.option(
    "--data", "data", metavar="FILE...", type=A_PATH, multiple=True, required=True, help="Text, jsonl or parquet."
)
@click.option(
    "--weights", metavar="NUMBER...", type=float, multiple=True, help="Each file's share of the tokens, in any unit."
)
@click.option("-o", "--output", type=A_PATH, required=True, help="The profile to write.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--resume", is_flag=True, help="Go on with a run for this output that did not finish, if there is one.")
@click.option(
    "--checkpoint-minutes", type=float, default=10.0, show_default=True, help="How often to save for --resume."
)
@click.option("--device", help="cpu, cuda, cuda:1, ...  [default: this process's GPU where there is one]")
@click.option("--device-map", help="Spread a model larger than one device: auto, or a .json file of devices by module.")
@click.option("--offload-folder", type=A_PATH, help="Where weights lie that --device-map puts on the disk.")
@click.option("--dtype", default="auto", show_default="the checkpoint's", help="float32, bfloat16 or float16.")
@click.option("--max-length", type=int, help="Cut longer documents into requests of so many tokens.  [default: 2048]")
@click.option("--batch-tokens", type=int, help="Tokens per forward pass.  [default: 16384 on a GPU, 4096 on a CPU]")
@click.option("--max-tokens", type=int, help="Stop after so many tokens of the data.")
@click.option("--sample-tokens", type=int, default=262_144, show_default=True, help="Tokens to keep one by one.")
@click.option(
    "--generate", type=int, metavar="N", help="Continue each prompt by N tokens, and keep their routing apart."
)
@click.option("--domain-column", help="The key or column that names a request's domain.  [default: a domain per file]")
@click.option("--seed", type=int, default=0, show_default=True, help="Which requests the sample takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    model: str,
    data: tuple[Path, ...],
    output: Path,
    force: bool,
    resume: bool,
    checkpoint_minutes: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Run MODEL (a checkpoint folder, or a name on the Hugging Face hub) over text and record its routing.

    A line of a .jsonl file, or a row of a .parquet file, holds `text`, or `prompt` and `completion`, or chat
    `messages`; any other file is one long text. Use text like that which the model will serve: a plan is as good as
    the profile is typical.

    Ctrl-C writes what there is. --generate leaves out the answers in the data: the model gives its own, greedily.

    \b
    specmoe profile MODEL --data text.txt -o routing.profile
    specmoe profile MODEL --data chats.jsonl code.jsonl --weights 0.7 0.3 -o routing.profile --max-tokens 1000000
    specmoe profile MODEL --data chats.jsonl -o routing.profile --generate 128
    specmoe profile allenai/OLMoE-1B-7B-0924 --data text.txt -o routing.profile --dtype bfloat16
    specmoe profile MODEL --data text.txt -o routing.profile --device-map auto --resume
    torchrun --nproc-per-node 8 --no-python specmoe profile MODEL --data text.txt -o routing.profile
    """
    from specmoe.profiler.output_file import OutputFile

    file = OutputFile(path=output, resume=resume, force=force, checkpoint_minutes=checkpoint_minutes, inputs=data)
    # Under torchrun every process runs this, and the first one writes.
    if os.environ.get("RANK", "0") == "0":
        file.refuse_existing()
    numbers = _run(model, data, file, options)
    if numbers is not None:
        from specmoe.cli.profile_summary import print_summary

        click.echo(json.dumps(numbers)) if as_json else print_summary(numbers)


def _run(model: str, data: Sequence[Path], output: "OutputFile", options: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of the profile written, in the process that wrote it."""
    from specmoe.cli.interrupt import first_interrupt
    from specmoe.cli.profile_summary import summary
    from specmoe.profiler.prepared_run import prepare_run
    from specmoe.profiler.processes import SaidElsewhereError, joined_processes
    from specmoe.profiler.profile_options import ProfileOptions
    from specmoe.profiler.run_profile import claim_output, run_profile

    start = time.monotonic()
    try:
        with joined_processes() as processes:
            chosen = ProfileOptions(**options | {"device_map": _device_map(options["device_map"])})
            claim_output(output, processes)
            prepared = prepare_run(model, data, chosen, processes)
            with first_interrupt() as interrupted:
                shown = sys.stderr.isatty()
                run = run_profile(prepared, processes, output=output, should_stop=interrupted.is_set, progress=shown)
    except SaidElsewhereError as error:
        sys.exit(error.exit_code)
    if run.profile is None:
        return None
    seconds = time.monotonic() - start
    return summary(run.profile, output.path, seconds, run_seconds=run.seconds, num_processes=run.num_processes)


def _device_map(value: str | None) -> str | dict[str, int | str] | None:
    """`value`, or the JSON object in the file of that name."""
    if value is None or not value.endswith(".json"):
        return value
    try:
        found = json.loads(Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{value} cannot be read as a JSON device map: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(device, int | str) for device in found.values()):
        raise ArtifactError(f"{value} is no device map: a JSON object with a device for each module was expected")
    return found
