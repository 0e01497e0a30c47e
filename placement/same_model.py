"""Refuse a plan and a profile that were made for different models."""

from specmoe.errors import MismatchError
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingProfile


def refuse_other_model(name: str, plan: PlacementPlan, profile: RoutingProfile) -> None:
    """Raise `MismatchError`, naming the plan `name` and what differs, unless both are of one model."""
    for what, in_plan, in_profile in (
        ("experts per layer", plan.num_logical_experts, profile.num_logical_experts),
        ("experts per token", plan.top_k, profile.top_k),
        ("MoE layers", plan.num_layers, profile.num_layers),
        ("layer ids", plan.layer_ids.tolist(), profile.layer_ids.tolist()),
    ):
        if in_plan != in_profile:
            raise MismatchError(
                f"plan {name} is for another model than the profile: its {what} are {in_plan}, the profile's "
                f"{in_profile}; use a plan solved from a profile of this model"
            )
    known = plan.model_fingerprint and profile.model_fingerprint
    if known and plan.model_fingerprint != profile.model_fingerprint:
        raise MismatchError(
            f"plan {name} is for another model than the profile: the model fingerprints are "
            f"{plan.model_fingerprint} and {profile.model_fingerprint}; use a plan solved from a profile of this model"
        )
