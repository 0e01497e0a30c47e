"""Put a proven bound on a plan, layer by layer, and take better placements where those are sought.

Work is counted in operations, not in seconds, so that the same inputs give the same bounds and the same plan on any
machine; only a time limit or Ctrl-C cuts it short.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from specmoe.placement.bounds.layer_bound import LayerBound, bound_layer, settle_layer
from specmoe.placement.bounds.layer_case import LayerCases
from specmoe.placement.bounds.take_copies import take_copies, take_served
from specmoe.placement.gap import gap_above
from specmoe.placement.metrics import measure_plan
from specmoe.placement.objective import objective_of
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import measured
from specmoe.profiler.routing_profile import RoutingProfile

BOUND_COVERS = "all placements for this plan's homes, with its slots, load cap and replica choice"
# Operations that one core does in a second.
_WORK_PER_SECOND = 5e8
# An exact search may take so many seconds of work at each of its steps in a layer; a program with replicas more where
# the method is the program.
_EXACT_SECONDS, _PROGRAM_SECONDS = 5.0, 60.0


def prove(plan: PlacementPlan, profile: RoutingProfile, options: SolveOptions, *, exact: bool = False) -> PlacementPlan:
    """The plan with bounds from about `options.bound_seconds` of one core's work; as it is where that is 0.

    exact: each layer takes the best placement for the plan's homes, as far as a fixed amount of work finds it and
    `can_settle` allows; with replicas, where that takes seconds a layer, not without a budget unless the method is
    that search.
    """
    if profile.sample is None or profile.sample.num_tokens == 0:
        return plan
    has_replicas = plan.physical_to_logical.shape[1] > plan.num_logical_experts
    if options.bound_seconds == 0 and (not exact or (has_replicas and plan.method != "ilp")):
        return plan
    cases = LayerCases(plan, profile, options.max_imbalance)
    work = int(options.bound_seconds * _WORK_PER_SECOND / plan.num_layers)
    bounds: list[LayerBound] = []

    def prove_layer(layer: int) -> LayerBound:
        if exact and not options.is_over:
            case = cases.case(layer, strict=True)
            seconds = _PROGRAM_SECONDS if case.has_replicas and plan.method == "ilp" else _EXACT_SECONDS
            settled = settle_layer(case, options, int(seconds * _WORK_PER_SECOND))
            if np.isinf(settled.with_homes):
                # Nothing keeps the cap, so the plan is compared with what is as even as itself.
                settled = settle_layer(cases.case(layer), options, int(seconds * _WORK_PER_SECOND))
            return settled
        return bound_layer(cases.case(layer), options, 0 if options.is_over else work)

    # Eigenvectors of small matrices take three times as long where every layer's thread starts threads of its own.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(options.workers) as pool:
        for bound in pool.map(prove_layer, range(plan.num_layers)):
            bounds.append(bound)
            tokens = profile.sample.num_tokens
            cost = float(np.mean([one.cost for one in bounds])) / tokens
            proven = float(np.mean([one.with_homes for one in bounds])) / tokens
            options.report("bounds", len(bounds), plan.num_layers, cost, gap_above(proven, cost))
    found = {layer: bound.rank_of_expert for layer, bound in enumerate(bounds) if bound.rank_of_expert is not None}
    better = _with_placements(plan, found, profile) if found else plan
    better = _with_copies(better, cases, bounds, options)
    return better if options.bound_seconds == 0 else _noted(better, profile, bounds)


def _with_placements(
    plan: PlacementPlan, found: dict[int, NDArray[np.int32]], profile: RoutingProfile
) -> PlacementPlan:
    """The plan with other placements of single copies in some layers, and the same tables; found: int32 [E] each."""
    physical, dispatch = plan.physical_to_logical.copy(), plan.dispatch_slot.copy()
    for layer, rank_of_expert in found.items():
        physical[layer] = np.argsort(rank_of_expert, kind="stable")
        dispatch[layer] = np.argsort(physical[layer], kind="stable")[None, :]
    return _remeasured(plan, replace(plan, physical_to_logical=physical, dispatch_slot=dispatch), profile)


def _with_copies(
    plan: PlacementPlan, cases: LayerCases, bounds: list[LayerBound], options: SolveOptions
) -> PlacementPlan:
    """The plan with the better placements with replicas that its replica choice makes something of."""
    better = plan
    for layer, bound in enumerate(bounds):
        if bound.holds is not None:
            better = take_copies(better, cases.of(better), layer, bound.holds, options)
        if bound.served is not None and bound.served.holds is not None and bound.served.dispatch is not None:
            better = take_served(better, cases.of(better), layer, bound.served.holds, bound.served.dispatch)
    return plan if better is plan else _remeasured(plan, better, cases.profile)


def _remeasured(plan: PlacementPlan, other: PlacementPlan, profile: RoutingProfile) -> PlacementPlan:
    """The other plan, measured; what is expected on other requests falls in step with the objective."""
    better = measured(other, profile)
    expected = plan.predicted.get("held_out_objective")
    if expected is None or not plan.objective or better.objective is None:
        return better
    scaled = expected * better.objective / plan.objective
    return replace(better, predicted={**better.predicted, "held_out_objective": scaled})


def _noted(plan: PlacementPlan, profile: RoutingProfile, bounds: list[LayerBound]) -> PlacementPlan:
    """The plan with the mean bound, and every layer's in `predicted["bound"]`; in copies per token."""
    sample = profile.require_sample("a lower bound")
    objectives = [objective_of(metrics, plan.topology) for metrics in measure_plan(plan, sample)]
    layers = [
        {
            "layer_id": int(layer_id),
            "objective": objective,
            "bound": min(bound.with_homes / sample.num_tokens, objective),
            "any_homes": min(bound.any_homes / sample.num_tokens, objective),
            "is_weak": bound.is_weak,
        }
        for layer_id, objective, bound in zip(plan.layer_ids, objectives, bounds, strict=True)
    ]
    means = {name: float(np.mean([layer[name] for layer in layers])) for name in ("bound", "any_homes")}
    note = {
        "covers": BOUND_COVERS,
        "any_homes": means["any_homes"],
        "is_weak": any(layer["is_weak"] for layer in layers),
        "layers": layers,
    }
    assert plan.objective is not None
    bound = min(means["bound"], plan.objective)
    return replace(plan, bound=bound, predicted={**plan.predicted, "bound": note})
