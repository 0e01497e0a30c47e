"""Take a better placement with replicas into a plan's layer, where the plan's replica choice makes something of it."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.layer_case import LayerCases
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.copies import copies_from
from specmoe.placement.solvers.finish_layer import finish_layer
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine


def take_copies(
    plan: PlacementPlan, cases: LayerCases, layer: int, holds: NDArray[np.bool_], options: SolveOptions
) -> PlacementPlan:
    """The plan with copies as in `holds`, bool [R, E], in row `layer`, and the dispatch that suits them; as it is where
    that costs no less, or breaks the load cap.
    """
    machine = Machine.of(plan.topology, options, plan.num_logical_experts, options.max_imbalance)
    problem = LayerProblem.of(cases.profile, layer, machine)
    copies, choice = copies_from(holds), plan.replica_choice
    found = finish_layer(problem, copies, cases.homes[layer], choice, options.seed)
    physical, dispatch = plan.physical_to_logical.copy(), plan.dispatch_slot.copy()
    physical[layer] = np.nonzero(found.holds)[1]
    rank = found.static_dispatch if choice == "static" else found.cover_dispatch
    slot = np.cumsum(found.holds).reshape(found.holds.shape) - 1
    dispatch[layer] = slot[rank, np.arange(plan.num_logical_experts)]
    other = replace(plan, physical_to_logical=physical, dispatch_slot=dispatch)
    before, after = cases.case(layer, strict=True), cases.of(other).case(layer, strict=True)
    is_better = after.is_legal and (after.cost < before.cost or not before.is_legal)
    return other if is_better else plan
