"""Put solved layers together: slots in order, dispatch by slot, the better replica choice, predicted metrics."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.metrics import mean_metrics, measure_plan
from specmoe.placement.objective import objective_of
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan, ReplicaChoice
from specmoe.placement.solvers.finish_layer import LayerChoice
from specmoe.placement.solvers.load_drift import expected_imbalance
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def assemble(
    profile: RoutingProfile,
    topology: Topology,
    options: SolveOptions,
    layers: Sequence[LayerChoice],
    *,
    method: str,
    expected: float | None = None,
    spread: float | None = None,
    **tables: Any,
) -> PlacementPlan:
    """The plan of the solved layers, measured on the profile's sample.

    expected: the objective, with the cover choice of replicas, on requests that the plan was not fitted to, before its
    layers were finished, None where the method cannot say; spread: how far the true one may lie from it, as of
    `cost_spread`, None where a single request cannot tell; tables: the plan's optional tensors.
    """
    plans = {
        choice: measured(_plan(profile, topology, options, layers, choice, method, tables), profile)
        for choice in _choices(options, layers)
    }
    allowed = [plans[choice] for choice in plans if options.replica_choice in (None, choice)]
    best = min(allowed, key=_by_objective)
    if expected is None:
        return best
    imbalance = expected_imbalance(best, profile.require_sample("measuring a plan"))
    expected += float(np.mean([layer.cost_of_finish for layer in layers]))
    by_cover = _by_objective(plans.get("cover", best))
    # Another choice is taken to cost in the same proportion on new requests as on the profile.
    own_share = _by_objective(best) / by_cover if by_cover else 1.0
    held_out = {
        "held_out_objective": expected * own_share,
        "held_out_spread": spread,
        "held_out_load_imbalance": imbalance,
    }
    return replace(best, predicted={**best.predicted, **held_out})


def measured(plan: PlacementPlan, profile: RoutingProfile) -> PlacementPlan:
    """The plan with its objective and `predicted["profile"]`, the metrics on the profile's sample."""
    metrics = mean_metrics(measure_plan(plan, profile.require_sample("measuring a plan")))
    predicted = {**plan.predicted, "profile": metrics.to_json()}
    return replace(plan, objective=objective_of(metrics, plan.topology), predicted=predicted)


def _by_objective(plan: PlacementPlan) -> float:
    assert plan.objective is not None
    return plan.objective


def _choices(options: SolveOptions, layers: Sequence[LayerChoice]) -> tuple[ReplicaChoice, ...]:
    """The replica choices that differ; without replicas none do."""
    has_replicas = any(layer.holds.sum() > layer.holds.shape[1] for layer in layers)
    return ("cover", "static") if has_replicas else (options.replica_choice or "static",)


def _plan(
    profile: RoutingProfile,
    topology: Topology,
    options: SolveOptions,
    layers: Sequence[LayerChoice],
    choice: ReplicaChoice,
    method: str,
    tables: dict[str, Any],
) -> PlacementPlan:
    slots = topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    return PlacementPlan(
        topology=topology,
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        attention=options.attention,
        replica_choice=choice,
        layer_ids=profile.layer_ids,
        physical_to_logical=np.stack([np.nonzero(layer.holds)[1] for layer in layers]).astype(np.int32),
        rank_of_physical=np.repeat(np.arange(len(slots), dtype=np.int32), slots),
        dispatch_slot=np.stack([_dispatch_slot(layer, choice) for layer in layers]),
        method=method,
        seed=options.seed,
        profile_fingerprint=profile.fingerprint,
        model_fingerprint=profile.model_fingerprint,
        **tables,
    )


def _dispatch_slot(layer: LayerChoice, choice: ReplicaChoice) -> NDArray[np.int32]:
    """int32 [R, E]: the slot of the copy that each home rank uses; slots number the true entries of `holds` by row."""
    slot = (np.cumsum(layer.holds).reshape(layer.holds.shape) - 1).astype(np.int32)
    rank = layer.static_dispatch if choice == "static" else layer.cover_dispatch
    return slot[rank, np.arange(layer.holds.shape[1])]
