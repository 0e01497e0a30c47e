"""`ilp`: the placement that costs least for the plan's homes, with its proof.

`auto`'s search finds the tables, and so the homes, under the whole load cap. `bounds/prove.py` then finds the best
placement for those homes, as a choice of one column of experts per rank (`bounds/partition.py`, and with replicas, for
few experts, `bounds/best_pairs.py`, `bounds/copies_program.py` and `bounds/served_program.py`). Other tables might
allow less: the proof is over all placements with these homes.
"""

from dataclasses import replace

from specmoe.errors import UsageError
from specmoe.placement.bounds.pair_layer import MOST_COLUMNS, count_columns
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.auto_dp import auto_dp
from specmoe.placement.solvers.auto_tp import auto_tp
from specmoe.placement.solvers.margins import THE_CAP_ITSELF
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def ilp(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan to prove; raises `UsageError` where there are expert groups to keep, or replicas of many experts."""
    E, slots = profile.num_logical_experts, topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    columns = count_columns(E, slots)
    if slots.sum() > E and columns > MOST_COLUMNS:
        raise UsageError(
            f"method 'ilp' with replicas is for few experts: {E} experts in {slots.sum()} slots give the ranks "
            f"{columns:,} ways to be filled, at most {MOST_COLUMNS:,} were expected; use 'auto'"
        )
    if options.group_limited:
        raise UsageError("method 'ilp' places experts freely, and expert groups were to be kept; use 'auto'")
    profile.require_sample("method 'ilp'")
    solver = auto_dp if options.attention == "dp" else auto_tp
    return replace(solver(profile, topology, options, THE_CAP_ITSELF), method="ilp")
