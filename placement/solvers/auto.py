"""`auto`: the best plan that this package can find, by what the profile and the attention allow."""

from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.auto_dp import auto_dp
from specmoe.placement.solvers.auto_tp import auto_tp
from specmoe.placement.solvers.counts_only import balance_counts
from specmoe.placement.solvers.margins import margins_for
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def auto(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The best plan found; from counts alone, where the profile has no sample, the most even one."""
    if profile.sample is None or profile.sample.num_tokens == 0:
        return balance_counts(profile, topology, options)
    solver = auto_dp if options.attention == "dp" else auto_tp
    slots = int(topology.slots_of_rank(profile.num_logical_experts, options.extra_slots).sum())
    return solver(profile, topology, options, margins_for(slots, profile.num_logical_experts))
