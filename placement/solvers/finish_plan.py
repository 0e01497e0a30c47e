"""End a solved plan anew on another profile than the one it was searched on: dispatch, cap, replica choice, figures."""

from specmoe.placement.homes import homes_of
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import assemble
from specmoe.placement.solvers.copies import copies_from
from specmoe.placement.solvers.finish_layer import LayerChoice, finish_layer
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.solvers.margins import ceiling_of, margins_for
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def finish_plan(
    plan: PlacementPlan, profile: RoutingProfile, topology: Topology, options: SolveOptions
) -> PlacementPlan:
    """The plan for `profile` that has the placement and tables of `plan`, but for copies moved to keep the cap."""
    slots = int(topology.slots_of_rank(profile.num_logical_experts, options.extra_slots).sum())
    margin = margins_for(slots, profile.num_logical_experts)[0]
    ceiling = ceiling_of(margin, options.max_imbalance)
    machine = Machine.of(topology, options, profile.num_logical_experts, ceiling)
    homes = homes_of(plan, profile.require_sample("finishing a plan"))
    choice = options.replica_choice or "cover"

    def finish(layer: int) -> LayerChoice:
        problem = LayerProblem.of(profile, layer, machine)
        return finish_layer(problem, copies_from(plan.holds[layer]), homes[layer], choice, options.seed + layer)

    layers = [finish(layer) for layer in range(plan.num_layers)]
    names = ("token_affinity", "token_to_rank", "token_confidence")
    tables = {name: getattr(plan, name) for name in names if getattr(plan, name) is not None}
    return assemble(profile, topology, options, layers, method=plan.method, **tables)
