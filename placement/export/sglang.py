"""SGLang: `--init-expert-location FILE`, read by `compute_initial_expert_location_metadata` (SGLang 0.5).

The file has one key, `physical_to_logical_map` [num_layers, P]: the reader passes the object on as keyword arguments,
so a second key is an error. A row stands for each decoder layer, dense ones too, where nothing uses it.
"""

import json
import shlex
from pathlib import Path

from specmoe.errors import UsageError
from specmoe.placement.export.engine import Engine
from specmoe.placement.export.slots import moe_rows, num_redundant
from specmoe.placement.plan import PlacementPlan


def _text(plan: PlacementPlan, num_layers: int | None) -> str:
    if num_layers is None:
        raise UsageError(
            "SGLang wants a row for each decoder layer, dense ones too, and the plan has MoE layers only; "
            "give --num-layers N or --model MODEL"
        )
    # What SGLang itself puts where nothing is given.
    trivial = [slot % plan.num_logical_experts for slot in range(plan.num_physical_experts)]
    planned = dict(zip(plan.layer_ids.tolist(), moe_rows(plan), strict=True))
    return json.dumps({"physical_to_logical_map": [planned.get(layer, trivial) for layer in range(num_layers)]})


def _launch(plan: PlacementPlan, path: Path) -> tuple[str, ...]:
    attention = (f"--dp-size {plan.ep_size}", "--enable-dp-attention") if plan.attention == "dp" else ()
    return (
        f"--tp-size {plan.ep_size}",
        *attention,
        f"--ep-size {plan.ep_size}",
        f"--ep-num-redundant-experts {num_redundant(plan)}",
        f"--init-expert-location {shlex.quote(str(path))}",
    )


SGLANG = Engine(
    text=_text,
    launch=_launch,
    every_layer=True,
    suffix=".json",
    warning="leave --enable-eplb off, which moves the experts away from the plan; for models that it has no placement "
    "support for (Mixtral, OLMoE, Phi-MoE) SGLang ignores the file without an error",
)
