"""Sem-MoE (arXiv 2503.04398), Algorithm 1: requests and experts are clustered in turn, tokens follow their requests.

Experts are visited by falling load and go to the rank with the best alpha * affinity to its experts + beta * affinity
to its requests - gamma * its load; random exchanges follow. Requests are visited by length and go to the rank with the
best affinity to its requests and to its experts; every rank takes equally many. The paper gives no values for the
weights, the rounds and the exchanges: here all weights are 1, each term scaled to [0, 1] among the ranks that may take
the expert, 8 rounds, 64 exchanges. The paper does not say how the layers of a request agree on its rank: with `dp` all
layers share one clustering of the requests, with `tp` each layer has its own. A token id's rank is the one where most
of its tokens' requests are.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from published.groups import group_sizes, plan_of_groups, used_experts
from specmoe.placement.homes import request_starts
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

ROUNDS = 8
EXCHANGES = 64
Floats = NDArray[np.float64]
Groups = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Affinities:
    """What the algorithm looks at. request_load: float64 [N, L, E], how often each request uses each expert.

    expert_affinity: float64 [L, E, E], how likely the tokens of one id use both; lengths: int64 [N], tokens.
    """

    request_load: Floats
    expert_affinity: Floats
    lengths: NDArray[np.int64]

    def of_layer(self, layer: int) -> "Affinities":
        return replace(
            self,
            request_load=self.request_load[:, layer : layer + 1],
            expert_affinity=self.expert_affinity[layer : layer + 1],
        )


def sem_moe(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """Algorithm 1; without token ids or requests in the trace it raises `ArtifactError`."""
    affinities, token_ids, request_of_token = _affinities(profile)
    sizes, rng = group_sizes(profile, topology), np.random.default_rng(options.seed)
    R, V = topology.ep_size, profile.vocab_size or int(token_ids.max()) + 1
    if options.attention == "dp":
        experts, requests = _alternate(affinities, sizes, rng)
        seen = _tokens_per_rank(token_ids, requests[request_of_token], V, R)
        affinity = np.eye(R)[seen.argmax(axis=1)] * (seen.sum(axis=1, keepdims=True) > 0)
        plan = plan_of_groups(profile, topology, options, "sem_moe", experts)
        return replace(plan, token_affinity=affinity.astype(np.float16))
    groups, ranks, confidence = [], [], []
    for layer in range(profile.num_layers):
        experts, requests = _alternate(affinities.of_layer(layer), sizes, rng)
        seen = _tokens_per_rank(token_ids, requests[request_of_token], V, R)
        total = seen.sum(axis=1)
        groups.append(experts[0])
        ranks.append(np.where(total > 0, seen.argmax(axis=1), -1))
        confidence.append(seen.max(axis=1) / np.maximum(total, 1))
    return replace(
        plan_of_groups(profile, topology, options, "sem_moe", np.stack(groups)),
        token_to_rank=np.stack(ranks).astype(np.int16),
        token_confidence=np.stack(confidence).astype(np.float16),
    )


def _affinities(profile: RoutingProfile) -> tuple[Affinities, NDArray[np.int32], Groups]:
    sample = profile.require_sample("Sem-MoE's algorithm")
    if sample.token_ids is None or sample.request_ids is None:
        raise ValueError("Sem-MoE's algorithm needs a trace with token ids and request ids")
    starts = request_starts(sample.request_ids, sample.num_tokens)
    lengths = np.diff(starts, append=sample.num_tokens)
    ids, index = np.unique(sample.token_ids, return_inverse=True)
    loads, pairs = [], []
    for layer in range(profile.num_layers):
        uses = used_experts(sample.expert_ids[:, layer], profile.num_logical_experts)
        loads.append(np.add.reduceat(uses, starts, axis=0))
        counts = np.zeros((len(ids), uses.shape[1]), dtype=np.float64)
        np.add.at(counts, index, uses)
        chance = counts / counts.sum(axis=1, keepdims=True)
        pairs.append(chance.T @ (chance * np.bincount(index)[:, None]))
        np.fill_diagonal(pairs[-1], 0)
    request_load = np.stack(loads, axis=1).astype(np.float64)
    affinities = Affinities(request_load=request_load, expert_affinity=np.stack(pairs), lengths=lengths)
    return affinities, sample.token_ids, np.repeat(np.arange(len(starts)), lengths)


def _alternate(affinities: Affinities, sizes: list[int], rng: np.random.Generator) -> tuple[Groups, Groups]:
    """The best (experts int64 [L, E], requests int64 [N]) of all rounds, by heaviest load plus remote share."""
    vectors = _unit_rows(affinities.request_load.reshape(len(affinities.lengths), -1))
    centres = KMeans(min(len(sizes), len(vectors)), n_init=3, random_state=int(rng.integers(2**31))).fit(vectors)
    requests = centres.labels_.astype(np.int64)
    best: tuple[float, Groups, Groups] | None = None
    for _ in range(ROUNDS):
        experts = np.stack([_place_experts(affinities, layer, requests, sizes, rng) for layer in _layers(affinities)])
        requests = _schedule_requests(affinities, vectors, experts, len(sizes))
        cost = _cost(affinities, experts, requests, len(sizes))
        if best is None or cost < best[0]:
            best = cost, experts, requests
    assert best is not None
    return best[1], best[2]


def _place_experts(
    affinities: Affinities, layer: int, requests: Groups, sizes: list[int], rng: np.random.Generator
) -> Groups:
    """int64 [E]: one layer's experts, by falling load to the best rank with room; then random exchanges."""
    R, load = len(sizes), affinities.request_load[:, layer].sum(axis=0)
    pairs = affinities.expert_affinity[layer]
    to_requests = np.stack([affinities.request_load[requests == rank, layer].sum(axis=0) for rank in range(R)], axis=1)
    member = np.zeros((len(load), R))
    for expert in np.argsort(-load, kind="stable"):
        free = member.sum(axis=0) < sizes
        terms = pairs[expert] @ member, to_requests[expert], -(load @ member)
        score = sum(_scaled(term, free) for term in terms)
        member[expert, np.where(free, score, -np.inf).argmax()] = 1
    groups: Groups = member.argmax(axis=1)
    for first, second in rng.integers(0, len(load), (EXCHANGES, 2)):
        _exchange_if_better(groups, int(first), int(second), pairs, to_requests)
    return groups


def _exchange_if_better(groups: Groups, first: int, second: int, pairs: Floats, to_requests: Floats) -> None:
    a, b = groups[first], groups[second]
    if a == b:
        return
    apart = (groups == b).astype(np.float64) - (groups == a)
    to_experts = (pairs[first] - pairs[second]) @ apart - 2 * pairs[first, second]
    to_homes = to_requests[first, b] - to_requests[first, a] + to_requests[second, a] - to_requests[second, b]
    gain = to_experts / max(pairs.sum(), 1e-12) + to_homes / max(to_requests.sum(), 1e-12)
    if gain > 0:
        groups[first], groups[second] = b, a


def _schedule_requests(affinities: Affinities, vectors: Floats, experts: Groups, ep_size: int) -> Groups:
    """int64 [N]: requests, the longest first, to the rank of best affinity among those with room for one more."""
    N = len(affinities.lengths)
    local = np.stack(
        [(affinities.request_load * (experts == rank)).sum(axis=(1, 2)) for rank in range(ep_size)], axis=1
    )
    room = np.full(ep_size, -(-N // ep_size))
    sums, members = np.zeros((ep_size, vectors.shape[1])), np.zeros(ep_size)
    requests = np.zeros(N, dtype=np.int64)
    for request in np.argsort(-affinities.lengths, kind="stable"):
        free = room > 0
        alike = sums @ vectors[request] / np.maximum(members, 1)
        score = _scaled(alike, free) + _scaled(local[request], free)
        rank = int(np.where(free, score, -np.inf).argmax())
        requests[request] = rank
        room[rank] -= 1
        members[rank] += 1
        sums[rank] += vectors[request]
    return requests


def _cost(affinities: Affinities, experts: Groups, requests: Groups, ep_size: int) -> float:
    """Heaviest rank's load over the mean, plus the share of remote activations, both as means over layers."""
    loads = np.stack([(affinities.request_load * (experts == rank)).sum(axis=2) for rank in range(ep_size)], axis=2)
    of_rank = loads.sum(axis=0)
    local = loads[np.arange(len(requests)), :, requests].sum()
    return float((of_rank.max(axis=1) / of_rank.mean(axis=1)).mean() + 1 - local / loads.sum())


def _tokens_per_rank(token_ids: NDArray[np.int32], ranks: Groups, vocab_size: int, ep_size: int) -> NDArray[np.int64]:
    """int64 [V, R]: how many tokens of each id are in requests of each rank."""
    known = (token_ids >= 0) & (token_ids < vocab_size)
    flat = token_ids[known].astype(np.int64) * ep_size + ranks[known]
    return np.bincount(flat, minlength=vocab_size * ep_size).reshape(vocab_size, ep_size)


def _layers(affinities: Affinities) -> range:
    return range(affinities.request_load.shape[1])


def _scaled(term: Floats, free: NDArray[np.bool_]) -> Floats:
    """`term` moved to [0, 1] over the ranks that are free."""
    low, high = term[free].min(), term[free].max()
    return (term - low) / (high - low) if high > low else np.zeros_like(term)


def _unit_rows(rows: Floats) -> Floats:
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
