"""GRACE-MoE (arXiv 2509.25041), its placement: spectral groups of the co-activation graph, copies of hot experts.

Its code is not public and its groups may differ in size by 15 %; here they are equal, as the memory of ranks is: the
spectral embedding is clustered by k-means, and experts are assigned to the centres exactly. Free slots hold the
hottest experts of the heaviest group that a rank does not hold yet.
"""

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.manifold import spectral_embedding

from published.groups import best_groups, coactivation, group_sizes
from specmoe.placement.baselines.build import RankExperts, build_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def grace(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """Spectral groups with copies of hot experts, layer by layer."""
    sizes = group_sizes(profile, topology)
    slots = topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    layers = []
    for layer, counts in enumerate(profile.expert_counts):
        groups = spectral_groups(coactivation(profile, layer), sizes, options.seed)
        held = [np.flatnonzero(groups == rank).tolist() for rank in range(topology.ep_size)]
        layers.append(copy_hot_experts(held, counts, slots))
    return build_plan(profile, topology, options, "grace", layers)


def spectral_groups(pairs: NDArray[np.float64], sizes: list[int], seed: int) -> NDArray[np.int64]:
    """int64 [E]: equal groups around the k-means centres of the spectral embedding of `pairs` [E, E]."""
    if len(sizes) == 1:
        return np.zeros(len(pairs), dtype=np.int64)
    # A trace of few tokens leaves experts without a partner; a little affinity to all keeps the graph connected.
    graph = pairs + 1e-3 * max(pairs.mean(), 1.0)
    points = spectral_embedding(graph, n_components=len(sizes), random_state=seed, drop_first=False)
    centres = KMeans(len(sizes), n_init=10, random_state=seed).fit(points).cluster_centers_
    distance = ((points[:, None, :] - centres[None]) ** 2).sum(axis=-1)
    return best_groups(-distance, sizes)


def copy_hot_experts(held: RankExperts, counts: NDArray[np.int64], slots: NDArray[np.int32]) -> RankExperts:
    """`held` with each rank's free slots taken by the hottest experts of the heaviest groups."""
    by_weight = sorted(range(len(held)), key=lambda rank: -int(counts[held[rank]].sum()))
    hot = [expert for rank in by_weight for expert in sorted(held[rank], key=lambda expert: -int(counts[expert]))]
    filled = []
    for experts, size in zip(held, slots, strict=True):
        others = [expert for expert in hot if expert not in experts]
        filled.append(experts + others[: size - len(experts)])
    return filled
