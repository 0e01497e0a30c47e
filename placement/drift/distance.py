"""How far two profiles' routing differs, and how far it would by chance.

The distance of two layers is the total variation of their experts' shares of all pairs,

    1/2 sum over experts e of |old[e] / sum(old) - new[e] / sum(new)|,

the share of pairs that would have to go to another expert. By chance: the same distance when the requests of both are
dealt out anew, at random, into two groups as large as the two profiles (a permutation test). Requests are dealt whole,
since tokens of one request use much the same experts.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

_DRAWS = 200
_CHANCE = 0.95


def share_distance(old: NDArray[np.int64], new: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [L]: total variation of two count tables, [L, ...] each, row by row; 0 where a row counts nothing."""
    flat_old, flat_new = old.reshape(len(old), -1), new.reshape(len(new), -1)
    sums = [np.maximum(flat.sum(axis=1, keepdims=True), 1) for flat in (flat_old, flat_new)]
    distance: NDArray[np.float64] = 0.5 * np.abs(flat_old / sums[0] - flat_new / sums[1]).sum(axis=1)
    return np.where((flat_old.sum(axis=1) > 0) & (flat_new.sum(axis=1) > 0), distance, 0.0)


def pair_distance(old: RoutingProfile, new: RoutingProfile) -> NDArray[np.float64] | None:
    """float64 [L]: `share_distance` of pairs of different experts; None where a profile has not counted pairs."""
    if old.coactivation_counts is None or new.coactivation_counts is None:
        return None
    upper = np.triu_indices(old.num_logical_experts, k=1)
    return share_distance(
        old.coactivation_counts[:, upper[0], upper[1]], new.coactivation_counts[:, upper[0], upper[1]]
    )


def distance_by_chance(old: RoutingProfile, new: RoutingProfile, seed: int = 0) -> float | None:
    """The mean over layers of `share_distance` that 95 of 100 random deals of both samples' requests stay below.

    None where a profile has no requests to deal.
    """
    samples = [profile.sample for profile in (old, new)]
    if any(sample is None or sample.request_ids is None or sample.num_tokens == 0 for sample in samples):
        return None
    counts = [list(_counts_by_request(sample, old.num_logical_experts)) for sample in samples if sample is not None]
    num_old, num_all = len(counts[0][0]), len(counts[0][0]) + len(counts[1][0])
    rng = np.random.default_rng(seed)
    is_old = np.argsort(rng.random((_DRAWS, num_all)), axis=1) < num_old
    distances = np.zeros(_DRAWS)
    for of_old, of_new in zip(*counts, strict=True):
        both = np.concatenate([of_old, of_new]).astype(np.float64)
        dealt_old = (is_old @ both).astype(np.int64)
        distances += share_distance(dealt_old, both.sum(axis=0).astype(np.int64) - dealt_old)
    return float(np.quantile(distances / old.num_layers, _CHANCE))


def sample_distance(old: RoutingSample, new: RoutingSample, num_experts: int) -> float:
    """The mean over layers of `share_distance` of two samples: what `distance_by_chance` is to be held against."""
    counts = [
        np.stack([_layer_counts(sample, layer, num_experts) for layer in _layers(sample)]) for sample in (old, new)
    ]
    return float(share_distance(*counts).mean())


def _layers(sample: RoutingSample) -> range:
    return range(sample.expert_ids.shape[1])


def _layer_counts(sample: RoutingSample, layer: int, num_experts: int) -> NDArray[np.int64]:
    """int64 [E]"""
    return np.bincount(sample.expert_ids[:, layer].ravel(), minlength=num_experts)


def _counts_by_request(sample: RoutingSample, num_experts: int) -> Iterator[NDArray[np.int64]]:
    """int64 [Q, E] per layer: how often each request used each expert."""
    assert sample.request_ids is not None
    request = np.unique(sample.request_ids, return_inverse=True)[1].astype(np.int64)
    num_requests = int(request.max()) + 1
    for layer in _layers(sample):
        cell = request[:, None] * num_experts + sample.expert_ids[:, layer]
        yield np.bincount(cell.ravel(), minlength=num_requests * num_experts).reshape(num_requests, num_experts)
