"""What `specmoe export` learns from the model: how many decoder layers it has, and whether the plan is for it."""

from specmoe.errors import MismatchError
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.model_facts import ModelFacts


def num_layers_of(plan: PlacementPlan, model: str | None, num_layers: int | None) -> int | None:
    """All decoder layers, from `model` (a folder or a name on the hub) or as given; None where neither is there.

    Raises `MismatchError` when `plan` is for another model, `UsageError` when `num_layers` contradicts the checkpoint.
    """
    facts = ModelFacts.gather(model, num_layers=num_layers)
    if facts.num_experts not in (None, plan.num_logical_experts):
        raise MismatchError(
            f"the plan is for another model: it places {plan.num_logical_experts} experts per layer, and {model} has "
            f"{facts.num_experts}; use a plan solved from a profile of this model"
        )
    if facts.fingerprint is not None and plan.model_fingerprint not in (None, facts.fingerprint):
        raise MismatchError(f"the plan is for another model: its fingerprint is not that of {model}; profile this one")
    if model is None:
        return facts.num_layers
    return facts.require("num_layers", f"{model}/config.json")
