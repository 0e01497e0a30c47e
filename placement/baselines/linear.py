"""Experts in checkpoint order, an equal run of them on each rank: what engines do unless told otherwise."""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.baselines.build import RankExperts, build_plan, even_sizes, fill_free_slots
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def linear(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The linear placement; slots that the experts leave free hold the experts 0, 1, 2, ... again."""
    E = profile.num_logical_experts
    slots = topology.slots_of_rank(E, options.extra_slots)
    held = fill_free_slots(linear_ranks(E, slots), slots, E)
    return build_plan(profile, topology, options, "linear", [held] * profile.num_layers)


def linear_ranks(num_experts: int, slots_of_rank: NDArray[np.int32]) -> RankExperts:
    """The experts of each rank, no replicas: as in vLLM the first `E % R` ranks get one expert more."""
    ends = np.cumsum(even_sizes(num_experts, slots_of_rank))
    return [part.tolist() for part in np.split(np.arange(num_experts), ends[:-1])]
