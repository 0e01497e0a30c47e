"""TensorRT-LLM: the YAML file of `moe_config.load_balancer`, read into `MoeLoadBalancerConfig`, which is strict.

`num_slots`, `initial_global_assignments` (decoder layer number -> P experts) and `layer_updates_per_iter`, 0 for a
placement that stays. Written by hand: the file has three keys and lists of whole numbers.
"""

import json
from pathlib import Path

from specmoe.placement.export.engine import Engine
from specmoe.placement.export.slots import moe_rows
from specmoe.placement.plan import PlacementPlan


def _text(plan: PlacementPlan, num_layers: int | None) -> str:
    rows = zip(plan.layer_ids.tolist(), moe_rows(plan), strict=True)
    lines = [f"num_slots: {plan.num_physical_experts}", "initial_global_assignments:"]
    lines += [f"  {layer_id}: {row}" for layer_id, row in rows]
    return "\n".join([*lines, "layer_updates_per_iter: 0", ""])


def _launch(plan: PlacementPlan, path: Path) -> tuple[str, ...]:
    return (
        f"tensor_parallel_size: {plan.ep_size}",
        f"moe_expert_parallel_size: {plan.ep_size}",
        "enable_attention_dp: true",
        f"moe_config: {{load_balancer: {json.dumps(str(path))}}}",
    )


TRTLLM = Engine(
    text=_text,
    launch=_launch,
    warning="TensorRT-LLM ignores the file, without an error, where attention DP is off or it does not balance the "
    "model's architecture",
)
