"""`ilp`: the placement that costs least for the plan's homes, proven by integer programming (OR-Tools, CP-SAT).

For one layer with homes fixed, tokens of expert set s, x[e, r] whether rank r holds e, y[s, r] whether r serves s:

    minimise sum over s, r of price[s, r] y[s, r],   y[s, r] >= x[e, r] for e in s,
    sum over r of x[e, r] = 1,   sum over e of x[e, r] <= slots[r],   sum over e of load[e] x[e, r] <= ceiling speed[r]

with price[s, r] the tokens of s that start elsewhere, by link. The search starts from `auto`'s placement and tables and
keeps the tables, so homes stay what they are. The bound is over all placements *with these homes*: other tables might
allow less. It ends when proven, or after a fixed amount of work, so the same inputs give the same plan.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import InfeasibleError, UsageError
from specmoe.placement.homes import homes_of
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import measured
from specmoe.placement.solvers.auto_dp import auto_dp
from specmoe.placement.solvers.auto_tp import auto_tp
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

BOUND_COVERS = "all placements with this plan's homes"
# Work per layer in CP-SAT's deterministic seconds, which do not depend on the machine.
_WORK = 10.0
# Prices become integers in this unit of a copy, rounded down: what that loses is far below a printed digit.
_UNIT = 1 / 64


@dataclass(frozen=True, kw_only=True)
class ProvenLayer:
    """rank_of_expert: int32 [E]; bound: copies over all tokens that no placement can go below."""

    rank_of_expert: NDArray[np.int32]
    bound: float


def ilp(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan, with its bound; raises `UsageError` where there are slots for replicas, or expert groups to keep."""
    slots = topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    if slots.sum() > profile.num_logical_experts or options.group_limited:
        raise UsageError(
            f"method 'ilp' places one copy of each expert, freely: {slots.sum()} slots for "
            f"{profile.num_logical_experts} experts were given; use 'auto' with replicas or expert groups"
        )
    profile.require_sample("method 'ilp'")
    solver = auto_dp if options.attention == "dp" else auto_tp
    return proven(solver(profile, topology, options, options.max_imbalance), profile, options)


def proven(plan: PlacementPlan, profile: RoutingProfile, options: SolveOptions) -> PlacementPlan:
    """A plan of single copies with every layer's placement as good as the work allows, and the bound that it proves."""
    sample = profile.require_sample("proving a bound")
    machine = Machine.of(plan.topology, options, profile.num_logical_experts, options.max_imbalance)
    homes = homes_of(plan, sample)
    done: list[ProvenLayer] = []

    def prove(layer: int) -> ProvenLayer:
        problem = LayerProblem.of(profile, layer, machine)
        sets = problem.sets
        homes_of_set = np.zeros((len(sets.sets), machine.ep_size))
        np.add.at(homes_of_set, (sets.set_of_token, homes[layer]), 1.0)
        hint = plan.dispatch_rank[layer, 0].astype(np.int32)
        return prove_layer(problem, homes_of_set, hint, options, int(plan.layer_ids[layer]))

    with ThreadPoolExecutor(options.workers) as pool:
        for proof in pool.map(prove, range(plan.num_layers)):
            done.append(proof)
            options.report("proof", len(done), plan.num_layers)
    better = measured(_with_placements(plan, [proof.rank_of_expert for proof in done]), profile)
    bound = float(np.mean([proof.bound for proof in done])) / sample.num_tokens
    assert better.objective is not None
    # With more than one node the metric counts a node once, the program a copy at a time: no bound on the metric then.
    if machine.surcharge > 0:
        return replace(better, method="ilp", predicted={**better.predicted, "missing": [_NO_NODE_BOUND]})
    predicted = {**better.predicted, "bound_covers": BOUND_COVERS}
    return replace(better, method="ilp", bound=min(bound, better.objective), predicted=predicted)


_NO_NODE_BOUND = "no bound: links of different speed are outside what the integer program states exactly"


def prove_layer(
    problem: LayerProblem,
    homes_of_set: NDArray[np.float64],
    hint: NDArray[np.int32],
    options: SolveOptions,
    layer_id: int,
) -> ProvenLayer:
    """The best placement found for one layer and a proven bound; hint: int32 [E], a placement to start from.

    homes_of_set: float64 [S, R]. Raises `InfeasibleError` where it is proven that no placement keeps the load cap.
    """
    from ortools.sat.python import cp_model

    E, R = problem.num_logical_experts, problem.machine.ep_size
    model = cp_model.CpModel()
    holds = [[model.new_bool_var("") for _ in range(R)] for _ in range(E)]
    for e in range(E):
        model.add_exactly_one(holds[e])
        for r in range(R):
            model.add_hint(holds[e][r], bool(hint[e] == r))
    load = problem.load.astype(np.int64)
    for r in range(R):
        ceiling = int(np.floor(problem.cap.ceiling * problem.machine.speed[r] + 1e-6))
        model.add(sum(holds[e][r] for e in range(E)) <= int(problem.machine.slots[r]))
        model.add(sum(int(load[e]) * holds[e][r] for e in range(E)) <= ceiling)
    price = np.floor(homes_of_set @ problem.machine.link / _UNIT + 1e-6).astype(np.int64)
    terms = []
    for s, experts in enumerate(problem.sets.sets):
        for r in np.flatnonzero(price[s]).tolist():
            serves = model.new_bool_var("")
            for expert in experts.tolist():
                model.add_implication(holds[expert][r], serves)
            terms.append(int(price[s, r]) * serves)
    model.minimize(sum(terms))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = options.seed % (1 << 31)
    solver.parameters.max_deterministic_time = _WORK
    if options.time_limit is not None:
        solver.parameters.max_time_in_seconds = options.time_limit
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        raise InfeasibleError(
            f"layer {layer_id}: it is proven that no placement keeps the heaviest rank within "
            f"{problem.machine.max_imbalance:g} times the mean load; raise max_imbalance or add extra slots"
        )
    bound = max(0.0, solver.best_objective_bound * _UNIT)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return ProvenLayer(rank_of_expert=hint, bound=bound if status == cp_model.UNKNOWN else 0.0)
    found = np.array([[solver.value(held) for held in row] for row in holds]).argmax(axis=1).astype(np.int32)
    best = min((hint, found), key=lambda place: problem.priced_cost(place, homes_of_set))
    return ProvenLayer(rank_of_expert=best, bound=bound)


def _with_placements(plan: PlacementPlan, ranks: list[NDArray[np.int32]]) -> PlacementPlan:
    """The plan with other placements of single copies, and the same tables; ranks: int32 [E] per layer."""
    physical = np.stack([np.argsort(rank, kind="stable") for rank in ranks]).astype(np.int32)
    slot = np.argsort(physical, axis=1).astype(np.int32)
    dispatch = np.repeat(slot[:, None, :], plan.ep_size, axis=1)
    return replace(plan, physical_to_logical=physical, dispatch_slot=dispatch, objective=None)
