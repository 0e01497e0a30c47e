"""`cluster`: experts by spectral clustering of their co-activation, filled evenly by an exact assignment.

The plain method to compare with: it knows pairs of experts only, no load, no homes.
The plan has no tables.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from specmoe.placement.baselines.build import build_plan, fill_free_slots
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def cluster(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan; slots that the experts leave free hold the experts 0, 1, 2, ... again."""
    sample = profile.require_sample("method 'cluster'")
    E = profile.num_logical_experts
    slots = topology.slots_of_rank(E, options.extra_slots)
    layers = []
    for layer in range(profile.num_layers):
        rank = clustered_experts(_coactivation(sample.expert_ids[:, layer], E), slots, options.seed)
        held = [np.flatnonzero(rank == r).tolist() for r in range(len(slots))]
        layers.append(fill_free_slots(held, slots, E))
    return build_plan(profile, topology, options, "cluster", layers)


def clustered_experts(together: NDArray[np.float64], slots: NDArray[np.int32], seed: int) -> NDArray[np.int32]:
    """int32 [E]: the rank of each expert; together: float64 [E, E], how often two experts serve the same token.

    k-means on the leading eigenvectors of the normalised matrix, then the cheapest assignment to the centres' slots.
    """
    from sklearn.cluster import KMeans

    degree = np.sqrt(np.maximum(together.sum(axis=1), 1.0))
    _, vectors = np.linalg.eigh(together / degree[:, None] / degree[None, :])
    features = vectors[:, -len(slots) :] / degree[:, None]
    centres = KMeans(len(slots), n_init=5, random_state=seed).fit(features).cluster_centers_
    rank_of_slot = np.repeat(np.arange(len(slots), dtype=np.int32), slots)
    distance = ((features[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    experts, chosen = linear_sum_assignment(distance[:, rank_of_slot])
    rank = np.empty(len(together), dtype=np.int32)
    rank[experts] = rank_of_slot[chosen]
    return rank


def _coactivation(expert_ids: NDArray[np.unsignedinteger], num_experts: int) -> NDArray[np.float64]:
    """float64 [E, E], zero on the diagonal."""
    used = np.zeros((len(expert_ids), num_experts), dtype=np.float32)
    np.put_along_axis(used, expert_ids.astype(np.int64), 1.0, axis=1)
    together = (used.T @ used).astype(np.float64)
    np.fill_diagonal(together, 0.0)
    return together
