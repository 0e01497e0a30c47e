"""vLLM: the JSON of `eplb_config.initial_expert_map_path`, a pull request (vllm-project/vllm#49572) and no release.

A list for each MoE layer, in order, of the logical expert in each physical slot.
"""

import json
import shlex
from pathlib import Path

from specmoe.placement.export.engine import Engine
from specmoe.placement.export.slots import moe_rows, num_redundant, vllm_ranks
from specmoe.placement.plan import PlacementPlan

# vLLM has no switch that keeps a map; the interval in engine steps puts its own rearrangement off for good.
NEVER_STEPS = 1_000_000_000


def _text(plan: PlacementPlan, num_layers: int | None) -> str:
    return json.dumps(moe_rows(plan))


def _launch(plan: PlacementPlan, path: Path) -> tuple[str, ...]:
    config = {
        "initial_expert_map_path": str(path),
        "num_redundant_experts": num_redundant(plan),
        "step_interval": NEVER_STEPS,
    }
    return (
        vllm_ranks(plan),
        "--enable-expert-parallel",
        "--enable-eplb",
        f"--eplb-config {shlex.quote(json.dumps(config))}",
    )


VLLM = Engine(
    text=_text,
    launch=_launch,
    warning="experimental: only the branch of vLLM pull request 49572 reads this file, no release does; "
    "specmoe reshard --layout hf, without replicas, works with every release",
)
