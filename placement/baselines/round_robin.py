"""Experts dealt out in turn: expert e sits on rank `e mod R`."""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.baselines.build import RankExperts, build_plan, even_sizes, fill_free_slots
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def round_robin(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The round-robin placement; slots that the experts leave free hold the experts 0, 1, 2, ... again."""
    E = profile.num_logical_experts
    slots = topology.slots_of_rank(E, options.extra_slots)
    held = fill_free_slots(round_robin_ranks(E, slots), slots, E)
    return build_plan(profile, topology, options, "round_robin", [held] * profile.num_layers)


def round_robin_ranks(num_experts: int, slots_of_rank: NDArray[np.int32]) -> RankExperts:
    """The experts of each rank, no replicas; a rank whose slots are full is passed over."""
    sizes = even_sizes(num_experts, slots_of_rank)
    held: RankExperts = [[] for _ in sizes]
    turn = 0
    for expert in range(num_experts):
        while len(held[turn % len(held)]) == sizes[turn % len(held)]:
            turn += 1
        held[turn % len(held)].append(expert)
        turn += 1
    return held
