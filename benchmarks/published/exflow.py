"""ExFlow (arXiv 2401.08383): keep a token's experts of consecutive layers on the same rank.

It minimises how often device(layer) differs from device(layer + 1), with equal groups. The paper states this as an
integer programme for top-1 models; with k experts every pair of consecutive experts counts. Given its neighbours a
layer's best groups are an exact assignment, so layers are improved in turn until nothing changes, from several starts.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from published.groups import best_groups, group_sizes, plan_of_groups, used_experts
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

STARTS = 8
MOST_ROUNDS = 50


def exflow(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The best of several descents on the transitions between layers."""
    sizes, rng = group_sizes(profile, topology), np.random.default_rng(options.seed)
    moves = transitions(profile)
    candidates = [_descend(moves, sizes, profile.num_layers, rng) for _ in range(STARTS)]
    best = max(candidates, key=lambda groups: kept_transitions(moves, groups))
    return plan_of_groups(profile, topology, options, "exflow", best)


def transitions(profile: RoutingProfile) -> NDArray[np.float64]:
    """float64 [L - 1, E, E]: tokens that use i in one layer and j in the next."""
    if profile.transition_counts is not None:
        return profile.transition_counts.astype(np.float64)
    E, expert_ids = profile.num_logical_experts, profile.require_sample("transitions between layers").expert_ids
    uses = [used_experts(expert_ids[:, layer], E) for layer in range(profile.num_layers)]
    pairs = [before.T @ after for before, after in pairwise(uses)]
    return np.array(pairs, dtype=np.float64).reshape(-1, E, E)


def kept_transitions(moves: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """How many transitions stay on a rank; groups: int64 [L, E]."""
    same = groups[:-1, :, None] == groups[1:, None, :]
    return float(moves[same].sum())


def _descend(
    moves: NDArray[np.float64], sizes: list[int], num_layers: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.stack([rng.permutation(labels) for _ in range(num_layers)])
    for _ in range(MOST_ROUNDS):
        before = groups.copy()
        for layer in range(num_layers):
            score = np.zeros((len(labels), len(sizes)), dtype=np.float64)
            if layer > 0:
                score += moves[layer - 1].T @ np.eye(len(sizes))[groups[layer - 1]]
            if layer + 1 < num_layers:
                score += moves[layer] @ np.eye(len(sizes))[groups[layer + 1]]
            groups[layer] = best_groups(score, sizes)
        if np.array_equal(before, groups):
            break
    return groups
