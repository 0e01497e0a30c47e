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
    """The plan with copies as in `holds`, bool [R, E], in row `layer`, and the dispatch that suits them, where
    `take_served` takes these.
    """
    machine = Machine.of(plan.topology, options, plan.num_logical_experts, options.max_imbalance)
    problem = LayerProblem.of(cases.profile, layer, machine)
    copies, choice = copies_from(holds), plan.replica_choice
    found = finish_layer(problem, copies, cases.homes[layer], choice, options.seed)
    rank = found.static_dispatch if choice == "static" else found.cover_dispatch
    return take_served(plan, cases, layer, found.holds, rank.astype(np.int32))


def take_served(
    plan: PlacementPlan, cases: LayerCases, layer: int, holds: NDArray[np.bool_], dispatch: NDArray[np.int32]
) -> PlacementPlan:
    """The plan with copies as in `holds`, bool [R, E], and dispatch to these ranks, int32 [R, E], in row `layer`; as it
    is where that costs no less or loads a rank more, unless it keeps the cap and the plan does not.
    """
    physical, slots = plan.physical_to_logical.copy(), plan.dispatch_slot.copy()
    physical[layer] = np.nonzero(holds)[1]
    slot = np.cumsum(holds).reshape(holds.shape) - 1
    slots[layer] = slot[dispatch, np.arange(plan.num_logical_experts)]
    other = replace(plan, physical_to_logical=physical, dispatch_slot=slots)
    before, after = cases, cases.of(other)
    if after.case(layer, strict=True).is_legal and not before.case(layer, strict=True).is_legal:
        return other
    is_even = (after.case(layer).ceiling <= before.case(layer).ceiling).all()
    return other if is_even and after.case(layer).cost < before.case(layer).cost else plan
