"""A JSON file for programs of one's own: slots, ranks and the dispatch table, in the plan's own words."""

import json
from pathlib import Path

from specmoe.placement.export.engine import Engine
from specmoe.placement.export.slots import moe_rows
from specmoe.placement.plan import PlacementPlan

PLACEMENT_FORMAT = "specmoe.placement/1"


def _text(plan: PlacementPlan, num_layers: int | None) -> str:
    rows = zip(plan.layer_ids.tolist(), moe_rows(plan), plan.dispatch_slot.tolist(), strict=True)
    return json.dumps(
        {
            "format": PLACEMENT_FORMAT,
            "plan_digest": plan.digest,
            "ep_size": plan.ep_size,
            "ranks_per_node": list(plan.topology.ranks_per_node),
            "num_logical_experts": plan.num_logical_experts,
            "top_k": plan.top_k,
            "attention": plan.attention,
            "replica_choice": plan.replica_choice,
            "rank_of_physical": plan.rank_of_physical.tolist(),
            "layers": [
                {"layer_id": layer_id, "physical_to_logical": row, "dispatch_slot": dispatch}
                for layer_id, row, dispatch in rows
            ],
        }
    )


def _launch(plan: PlacementPlan, path: Path) -> tuple[str, ...]:
    return ()


NEUTRAL = Engine(text=_text, launch=_launch, equal_blocks=False, keeps_dispatch=True)
