"""Small placement problems that every method is run on, each with one thing that a method could trip over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

VOCABULARY = 12


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A profile, a machine and what is asked for; `refused`: the methods that cannot, with a part of what they say."""

    profile: RoutingProfile
    machine: Topology
    max_imbalance: float = 1.5
    options: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_replicas(self) -> bool:
        slots = self.machine.slots_of_rank(self.profile.num_logical_experts, self.options.get("extra_slots", 0))
        return int(slots.sum()) > self.profile.num_logical_experts


def routed(
    expert_ids: np.ndarray, experts: int, *, token_ids: np.ndarray | None = None, requests: np.ndarray | None = None
) -> RoutingProfile:
    """The profile of a trace; expert_ids: [T, L, K]."""
    layers = range(expert_ids.shape[1])
    counts = [np.bincount(expert_ids[:, layer].ravel(), minlength=experts) for layer in layers]
    return RoutingProfile(
        layer_ids=np.arange(len(layers), dtype=np.int32),
        expert_counts=np.stack(counts).astype(np.int64),
        num_logical_experts=experts,
        top_k=expert_ids.shape[2],
        num_tokens=len(expert_ids),
        vocab_size=VOCABULARY,
        sample=RoutingSample(
            expert_ids=expert_ids.astype(np.uint8),
            token_ids=None if token_ids is None else token_ids.astype(np.int32),
            request_ids=None if requests is None else requests.astype(np.int32),
        ),
    )


def topical(
    *, experts: int = 8, top_k: int = 2, layers: int = 2, tokens: int = 240, pull: float = 4.0, scale: Any = 0.0
) -> RoutingProfile:
    """Requests of 12 tokens on one of two topics; a topic's experts have odd or even numbers, by layer.

    pull: how much a topic's experts are preferred, 0 for uniform routing; scale: [E], added to every expert's score.
    """
    rng = np.random.default_rng(0)
    requests = np.arange(tokens) // 12
    topic = rng.integers(2, size=tokens // 12 + 1)[requests]
    own = (np.arange(experts)[None, :] + np.arange(layers)[:, None]) % 2
    score = rng.gumbel(size=(tokens, layers, experts)) + pull * (own[None] == topic[:, None, None]) + scale
    token_ids = topic * (VOCABULARY // 2) + rng.integers(VOCABULARY // 2, size=tokens)
    return routed(np.argsort(-score, axis=2)[:, :, :top_k], experts, token_ids=token_ids, requests=requests)


def without(profile: RoutingProfile, *names: str) -> RoutingProfile:
    """`profile` without some arrays of its sample."""
    assert profile.sample is not None
    known = {name: getattr(profile.sample, name) for name in ("token_ids", "request_ids")}
    ids = {name: value for name, value in known.items() if name not in names and value is not None}
    return routed(
        profile.sample.expert_ids,
        profile.num_logical_experts,
        token_ids=ids.get("token_ids"),
        requests=ids.get("request_ids"),
    )


def counts_only(profile: RoutingProfile) -> RoutingProfile:
    return RoutingProfile(
        layer_ids=profile.layer_ids,
        expert_counts=profile.expert_counts,
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        num_tokens=profile.num_tokens,
    )


NO_SAMPLE = {"cluster": "counts alone"}
NO_SAMPLE_TO_PROVE = {**NO_SAMPLE, "ilp": "counts alone"}
NO_GROUPS = {"cluster": "groups", "ilp": "groups", "eplb": "groups", "round_robin": "groups"}
SLOW_LINKS: dict[str, Any] = {"intra_node_gb_per_s": 400.0, "inter_node_gb_per_s": 50.0}
HOT, UNUSED = np.where(np.arange(8) == 3, 5.0, 0.0), np.where(np.arange(8) == 5, -99.0, 0.0)

PROBLEMS: Mapping[str, Problem] = {
    "clustered": Problem(profile=topical(), machine=Topology.single_node(2)),
    "uniform": Problem(profile=topical(pull=0.0), machine=Topology.single_node(4)),
    "hot expert": Problem(profile=topical(scale=HOT), machine=Topology.single_node(2)),
    "unused expert": Problem(profile=topical(scale=UNUSED), machine=Topology.single_node(4)),
    "one rank": Problem(profile=topical(), machine=Topology.single_node(1)),
    "a rank per expert": Problem(profile=topical(), machine=Topology.single_node(8), max_imbalance=2.0),
    "experts left over": Problem(profile=topical(experts=7), machine=Topology.single_node(3), max_imbalance=1.6),
    "every expert used": Problem(profile=topical(top_k=8, tokens=48), machine=Topology.single_node(4)),
    "one expert a token": Problem(profile=topical(top_k=1), machine=Topology.single_node(2)),
    "one layer": Problem(profile=topical(layers=1), machine=Topology.single_node(2)),
    "one token": Problem(profile=topical(tokens=1), machine=Topology.single_node(2), max_imbalance=2.0),
    "no token ids": Problem(profile=without(topical(), "token_ids"), machine=Topology.single_node(2)),
    "no request ids": Problem(profile=without(topical(), "request_ids"), machine=Topology.single_node(2)),
    "no ids": Problem(profile=without(topical(), "token_ids", "request_ids"), machine=Topology.single_node(2)),
    "counts alone": Problem(
        profile=counts_only(topical()),
        machine=Topology.single_node(2),
        options={"extra_slots": 1},
        refused=NO_SAMPLE_TO_PROVE,
    ),
    "replicas": Problem(profile=topical(), machine=Topology.single_node(4), options={"extra_slots": 1}),
    "two nodes with slow links": Problem(profile=topical(), machine=Topology(ranks_per_node=(2, 2), **SLOW_LINKS)),
    "replicas on uneven nodes": Problem(
        profile=topical(),
        machine=Topology(ranks_per_node=(1, 3), **SLOW_LINKS),
        options={"extra_slots": 1},
    ),
    "uneven slots": Problem(
        profile=topical(), machine=Topology(ranks_per_node=(3,), slots=(4, 3, 1)), max_imbalance=1.8
    ),
    "unequal speeds": Problem(
        profile=topical(),
        machine=Topology(ranks_per_node=(3,), relative_speed=(1.0, 1.0, 0.4), slots=(4, 4, 2)),
    ),
    "expert groups": Problem(
        profile=topical(),
        machine=Topology.single_node(2),
        options={"group_limited": True, "expert_groups": 4},
        refused=NO_GROUPS,
    ),
    "an expert group on two ranks": Problem(
        profile=topical(),
        machine=Topology.single_node(4),
        options={"group_limited": True, "expert_groups": 2},
        refused=NO_GROUPS,
    ),
}
