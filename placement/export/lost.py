"""What of a plan an engine's file cannot carry, as a name and the reason."""

from specmoe.placement.export.engine import Engine
from specmoe.placement.export.slots import num_redundant
from specmoe.placement.plan import PlacementPlan


def lost(plan: PlacementPlan, engine: Engine) -> dict[str, str]:
    """Parts of the plan that are not in the file and why; without replicas the slots say all about the dispatch."""
    parts: dict[str, str] = {}
    if num_redundant(plan) and not engine.keeps_dispatch:
        parts["dispatch_slot"] = "the engine picks among an expert's replicas by a rule of its own"
        if plan.replica_choice == "cover":
            parts["replica_choice"] = "no engine picks replicas for the fewest ranks of a token, which 'cover' does"
    if plan.token_to_rank is not None:
        parts["token_to_rank"] = "the file has no token table: tokens start where the engine puts them"
        parts["token_confidence"] = "it belongs to token_to_rank"
    if plan.token_affinity is not None:
        parts["token_affinity"] = "the file has no token table: requests start on the rank that the engine picks"
    return parts
