"""`specmoe import`: turn another engine's routing record into a profile."""

import json
import time
from pathlib import Path
from typing import Any

import click

A_PATH: Any = click.Path(path_type=Path)
ENGINES = ("npz", "vllm", "sglang", "trtllm")


@click.command(name="import")
@click.argument("source", type=A_PATH)
@click.option("--from", "engine", type=click.Choice(ENGINES), required=True, help="Who wrote SOURCE.")
@click.option("-o", "--output", type=A_PATH, required=True, help="The profile to write.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--model", help="The model that was served (folder or hub name), where the record lacks its sizes.")
@click.option("--num-experts", type=int, help="In place of --model.")
@click.option("--num-layers", type=int, help="All decoder layers; in place of --model.")
@click.option("--top-k", type=int, help="Experts per token; in place of --model.")
@click.option("--sample-tokens", type=int, help="Tokens to keep one by one.  [default: all]")
@click.option("--seed", type=int, default=0, show_default=True, help="Which requests the sample takes.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    *,
    source: Path,
    engine: Any,
    output: Path,
    force: bool,
    as_json: bool,
    sample_tokens: int | None,
    seed: int,
    **model: Any,
) -> None:
    """Read SOURCE, a record of another engine's routing, and write it as a profile.

    An npz trace holds `expert_ids` [tokens, layers, top-k] and `num_experts`, and optionally `token_ids`,
    `request_ids`, `gate_weights`, `domain_ids`, `layer_ids` and `vocab_size`.

    From vLLM: answers with routed_experts (.json, .jsonl) or .npy arrays. From SGLang: answers with routed_experts, or
    .pt dumps of its expert distribution recorder. From TensorRT-LLM: its folder of expert statistics. The recorder's
    stat and per_pass modes and TensorRT-LLM's statistics have counts alone: enough to even out load, and no more.

    \b
    specmoe import trace.npz --from npz -o routing.profile --sample-tokens 200000
    specmoe import answers.jsonl --from vllm -o routing.profile --model MODEL
    specmoe import recorder_dumps/ --from sglang -o routing.profile
    specmoe import statistics/ --from trtllm -o load.profile
    """
    from specmoe.atomic import refuse_existing

    refuse_existing(output, force=force, inputs=[source])
    from specmoe.cli.profile_summary import print_summary, summary
    from specmoe.profiler.import_record import import_record
    from specmoe.profiler.model_facts import ModelFacts

    start = time.monotonic()
    facts = ModelFacts.gather(**model)
    routing = import_record(source, engine, facts, sample_tokens=sample_tokens, seed=seed)
    numbers = summary(routing, output, time.monotonic() - start)
    routing.save(output, force=force)
    click.echo(json.dumps(numbers)) if as_json else print_summary(numbers)
