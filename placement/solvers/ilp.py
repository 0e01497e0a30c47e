"""`ilp`: the placement that costs least for the plan's homes, with its proof.

`auto`'s search finds the tables, and so the homes, under the whole load cap. `bounds/prove.py` then finds the best
placement for those homes, as a choice of one column of experts per rank (`bounds/partition.py`). Other tables might
allow less: the proof is over all placements with these homes.
"""

from dataclasses import replace

from specmoe.errors import UsageError
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.auto_dp import auto_dp
from specmoe.placement.solvers.auto_tp import auto_tp
from specmoe.placement.solvers.margins import THE_CAP_ITSELF
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def ilp(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan to prove; raises `UsageError` where there are slots for replicas, or expert groups to keep."""
    slots = topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    if slots.sum() > profile.num_logical_experts or options.group_limited:
        raise UsageError(
            f"method 'ilp' places one copy of each expert, freely: {slots.sum()} slots for "
            f"{profile.num_logical_experts} experts were given; use 'auto' with replicas or expert groups"
        )
    profile.require_sample("method 'ilp'")
    solver = auto_dp if options.attention == "dp" else auto_tp
    return replace(solver(profile, topology, options, THE_CAP_ITSELF), method="ilp")
