"""Occult (arXiv 2505.13345): greedy clustering of the co-activation graph, so that a token's experts share ranks.

One group after the other: it begins with the pair of free experts that are used together most often, and takes the
free expert with most co-activation to the group until it is full. Load is not considered.
"""

import numpy as np
from numpy.typing import NDArray

from published.groups import coactivation, group_sizes, plan_of_groups
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def occult(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """Greedy co-activation groups, layer by layer."""
    sizes = group_sizes(profile, topology)
    layers = [greedy_groups(coactivation(profile, layer), sizes) for layer in range(profile.num_layers)]
    return plan_of_groups(profile, topology, options, "occult", np.stack(layers))


def greedy_groups(pairs: NDArray[np.float64], sizes: list[int]) -> NDArray[np.int64]:
    """int64 [E]: the group of each expert; pairs: float64 [E, E], co-activation."""
    groups = np.full(len(pairs), -1, dtype=np.int64)
    for group, size in enumerate(sizes):
        attraction = np.where(groups < 0, pairs.max(axis=1, where=groups < 0, initial=0), -1)
        for _ in range(size):
            expert = int(attraction.argmax())
            groups[expert] = group
            attraction = np.where(groups < 0, pairs[:, groups == group].sum(axis=1), -1)
    return groups
