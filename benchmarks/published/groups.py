"""What the published methods share: equal groups of experts, one per rank, and the plan that they make."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from specmoe.placement.baselines.build import build_plan, even_sizes, fill_free_slots
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def group_sizes(profile: RoutingProfile, topology: Topology) -> list[int]:
    """How many experts each rank's group has, without replicas."""
    E = profile.num_logical_experts
    return even_sizes(E, topology.slots_of_rank(E))


def best_groups(score: NDArray[Any], sizes: list[int]) -> NDArray[np.int64]:
    """int64 [E]: the group of each expert, of exactly these sizes, with the highest sum of score [E, R] (exact)."""
    places = np.repeat(np.arange(len(sizes)), sizes)
    experts, chosen = linear_sum_assignment(score[:, places], maximize=True)
    groups = np.empty(len(score), dtype=np.int64)
    groups[experts] = places[chosen]
    return groups


def plan_of_groups(
    profile: RoutingProfile, topology: Topology, options: SolveOptions, method: str, groups: NDArray[np.int64]
) -> PlacementPlan:
    """The plan that puts group r on rank r; groups: int64 [L, E]. Slots left free are filled in expert order."""
    slots = topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    layers = []
    for row in groups:
        held = [np.flatnonzero(row == rank).tolist() for rank in range(topology.ep_size)]
        layers.append(fill_free_slots(held, slots, profile.num_logical_experts))
    return build_plan(profile, topology, options, method, layers)


def coactivation(profile: RoutingProfile, layer: int) -> NDArray[np.float64]:
    """float64 [E, E]: how many tokens use both experts, 0 on the diagonal; from the counts, else from the sample."""
    E = profile.num_logical_experts
    if profile.coactivation_counts is not None:
        pairs: NDArray[np.float64] = profile.coactivation_counts[layer].astype(np.float64)
    else:
        uses = used_experts(profile.require_sample("co-activation").expert_ids[:, layer], E)
        pairs = (uses.T @ uses).astype(np.float64)
    np.fill_diagonal(pairs, 0)
    return pairs


def used_experts(expert_ids: NDArray[Any], num_logical_experts: int) -> NDArray[np.float32]:
    """float32 [T, E]: 1 where a token uses an expert; expert_ids: unsigned integers [T, K]."""
    uses = np.zeros((len(expert_ids), num_logical_experts), dtype=np.float32)
    np.put_along_axis(uses, expert_ids.astype(np.int64), 1, axis=1)
    return uses
