"""vLLM Ascend: the JSON of `eplb_config.expert_map_path`, static placement in its older model runner.

Layers are numbered among the MoE layers alone, from 0; each device lists the logical experts of its slots.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from specmoe.placement.export.engine import Engine
from specmoe.placement.export.slots import moe_rows, vllm_ranks
from specmoe.placement.plan import PlacementPlan


def _text(plan: PlacementPlan, num_layers: int | None) -> str:
    layers = [_layer(plan, number, row) for number, row in enumerate(moe_rows(plan))]
    return json.dumps({"moe_layer_count": plan.num_layers, "layer_list": layers}, indent=1)


def _layer(plan: PlacementPlan, number: int, row: list[int]) -> dict[str, Any]:
    bounds = plan.slot_offsets.tolist()
    devices = [
        {"device_id": rank, "device_expert": row[bounds[rank] : bounds[rank + 1]]} for rank in range(plan.ep_size)
    ]
    return {"layer_id": number, "device_count": plan.ep_size, "device_list": devices}


def _launch(plan: PlacementPlan, path: Path) -> tuple[str, ...]:
    config = {"eplb_config": {"expert_map_path": str(path)}}
    return (vllm_ranks(plan), "--enable-expert-parallel", f"--additional-config {shlex.quote(json.dumps(config))}")


VLLM_ASCEND = Engine(
    text=_text,
    launch=_launch,
    warning="experimental: static maps are to be removed from vLLM Ascend, and some releases place the experts their "
    "own way, without an error, where they cannot read the file",
)
