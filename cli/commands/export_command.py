"""`specmoe export`: hand a plan to a serving engine."""

import json
from pathlib import Path
from typing import Any

import click

A_PATH: Any = click.Path(path_type=Path)
# As in `specmoe.placement.export.engines`, which loads numpy; a test holds the two together.
ENGINE_NAMES = ("sglang", "trtllm", "vllm", "vllm-ascend", "json")


@click.command(name="export")
@click.argument("plan_path", metavar="PLAN", type=A_PATH)
@click.option("--to", "engine", type=click.Choice(ENGINE_NAMES), required=True, help="Who is to read FILE.")
@click.option("-o", "--output", metavar="FILE", type=A_PATH, required=True, help="The file to write.")
@click.option("--model", metavar="MODEL", help="The model's folder or hub name: checks that the plan is for it.")
@click.option("--num-layers", type=int, help="All decoder layers, dense ones too; in place of --model.")
@click.option("--force", is_flag=True, help="Replace an existing FILE and its sidecar.")
@click.option("--json", "as_json", is_flag=True, help="Print the sidecar's content as JSON.")
def command(
    plan_path: Path,
    engine: str,
    output: Path,
    model: str | None,
    num_layers: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write PLAN in the format of a serving engine, and FILE.specmoe.json beside it: the plan's digest, the settings to
    start the engine with, and what of the plan the format cannot carry.

    SGLang wants a row for each decoder layer, so it needs --model or --num-layers. The two vLLM forms are experimental;
    `specmoe reshard --layout hf` makes a checkpoint that every vLLM places as planned.

    \b
    specmoe export experts.plan --to sglang -o experts.json --model MODEL
    specmoe export experts.plan --to sglang -o experts.json --num-layers 61
    specmoe export experts.plan --to trtllm -o moe_load_balancer.yaml
    specmoe export experts.plan --to vllm -o expert_map.json
    """
    from specmoe.cli.model_of_plan import num_layers_of
    from specmoe.placement.export.export_plan import export_plan, refuse_outputs, sidecar_path
    from specmoe.placement.plan import PlacementPlan

    refuse_outputs(output, engine, force=force, inputs=[plan_path])
    plan = PlacementPlan.load(plan_path)
    layers = num_layers_of(plan, model, num_layers)
    result = export_plan(plan, engine, output, num_layers=layers, force=force)
    if as_json:
        click.echo(json.dumps(result))
        return
    for line in _lines(result):
        click.echo(line)
    click.echo(f"wrote {output} and {sidecar_path(output)}")


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['engine']}: {len(result['layer_ids'])} MoE layers, {result['num_logical_experts']} experts in "
        f"{result['num_physical_experts']} slots on {result['ep_size']} ranks"
    ]
    if result["launch"]:
        lines += ["start the engine with:", *(f"  {setting}" for setting in result["launch"])]
    lines += [f"not carried over: {name} ({reason})" for name, reason in result["lost"].items()]
    return [*lines, f"note: {result['warning']}"] if result["warning"] else lines
