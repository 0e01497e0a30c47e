"""DeepSeek's expert-parallel load balancer: copy the hottest experts, then pack the copies evenly.

Replication gives each next slot to the expert with most load per copy. Packing takes the copies by falling load, each
to the least-loaded rank that has room. Where the router has expert groups and they divide among the nodes, the groups
are packed onto nodes first, and each node replicates and packs its own experts. One thing differs from the published
algorithm, which may put two copies of an expert on one rank and so waste a slot: here that never happens.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.baselines.build import RankExperts, build_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def eplb(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The EPLB placement for the profile's expert counts, all slots filled."""
    slots = topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    groups = options.expert_groups or 1
    layers = [eplb_ranks(counts, slots, topology.ranks_per_node, groups) for counts in profile.expert_counts]
    return build_plan(profile, topology, options, "eplb", layers)


def eplb_ranks(
    counts: NDArray[np.int64], slots_of_rank: NDArray[np.int32], ranks_per_node: tuple[int, ...], num_groups: int
) -> RankExperts:
    """The experts of each rank for one layer; counts: int64 [E], slots_of_rank: int32 [R], at least E in all."""
    experts = np.arange(len(counts))
    if not is_hierarchical(len(counts), slots_of_rank, ranks_per_node, num_groups):
        return _replicate_and_pack(experts, counts, slots_of_rank)
    held: RankExperts = []
    first_rank = 0
    for groups in pack_groups(counts.reshape(num_groups, -1).sum(axis=1), len(ranks_per_node)):
        own = experts.reshape(num_groups, -1)[groups].ravel()
        last_rank = first_rank + ranks_per_node[0]
        held += _replicate_and_pack(own, counts[own], slots_of_rank[first_rank:last_rank])
        first_rank = last_rank
    return held


def is_hierarchical(
    num_experts: int, slots_of_rank: NDArray[np.int32], ranks_per_node: tuple[int, ...], num_groups: int
) -> bool:
    """Whether nodes can each take an equal share of the groups, and hold it without twins."""
    num_nodes = len(ranks_per_node)
    is_even = len(set(ranks_per_node)) == 1 and len(set(slots_of_rank.tolist())) == 1
    divides = num_experts % num_groups == 0 and num_groups % num_nodes == 0
    return num_nodes > 1 and is_even and divides and int(slots_of_rank[0]) <= num_experts // num_nodes


def pack_groups(load: NDArray[np.int64], num_nodes: int) -> list[list[int]]:
    """Equally many groups for each node: by falling load, each to the least-loaded node that has room."""
    room = len(load) // num_nodes
    nodes: list[list[int]] = [[] for _ in range(num_nodes)]
    for group in np.argsort(-load, kind="stable").tolist():
        free = [node for node in range(num_nodes) if len(nodes[node]) < room]
        nodes[min(free, key=lambda node: (load[nodes[node]].sum(), node))].append(group)
    return nodes


def _replicate_and_pack(
    experts: NDArray[np.int64], counts: NDArray[np.int64], slots_of_rank: NDArray[np.int32]
) -> RankExperts:
    copies = _replicate(counts, int(slots_of_rank.sum()), len(slots_of_rank))
    packed = _pack(counts / copies, copies, slots_of_rank)
    return [[int(experts[index]) for index in rank] for rank in packed]


def _replicate(counts: NDArray[np.int64], num_slots: int, most_copies: int) -> NDArray[np.int64]:
    """int64 [E]: copies of each expert, at most one per rank; each next slot goes where load per copy is highest."""
    copies = np.ones(len(counts), dtype=np.int64)
    for _ in range(num_slots - len(counts)):
        copies[np.argmax(np.where(copies < most_copies, counts / copies, -1.0))] += 1
    return copies


def _pack(
    load_per_copy: NDArray[np.float64], copies: NDArray[np.int64], slots_of_rank: NDArray[np.int32]
) -> RankExperts:
    """The experts of each rank: copies by falling load, each to the least-loaded rank with room and without a twin."""
    originals_first = np.concatenate([np.arange(len(copies)), np.repeat(np.arange(len(copies)), copies - 1)])
    held: RankExperts = [[] for _ in slots_of_rank]
    load, room = np.zeros(len(held), dtype=np.float64), slots_of_rank.copy()
    has_twin = np.zeros((len(copies), len(held)), dtype=np.bool_)
    for expert in originals_first[np.argsort(-load_per_copy[originals_first], kind="stable")].tolist():
        free = (room > 0) & ~has_twin[expert]
        if free.any():
            rank = int(np.where(free, load, np.inf).argmin())
            held[rank].append(expert)
            has_twin[expert, rank] = True
            load[rank] += load_per_copy[expert]
            room[rank] -= 1
            continue
        place_by_exchange(expert, held, np.flatnonzero(room > 0).tolist(), load_per_copy)
        room = slots_of_rank - np.array([len(experts) for experts in held])
        load = np.array([load_per_copy[experts].sum() for experts in held])
        has_twin = np.array([[index in experts for experts in held] for index in range(len(copies))])
    return held


def place_by_exchange(expert: int, held: RankExperts, with_room: list[int], load_per_copy: NDArray[np.float64]) -> None:
    """Place a copy though all ranks with room hold its twin: a full rank takes it and hands over another expert.

    Where slots differ so much that none can, the hottest expert that fits takes the slot instead.
    """
    exchanges = [
        (full, given, taker)
        for taker in with_room
        for full, theirs in enumerate(held)
        if expert not in theirs
        for given in theirs
        if given not in held[taker]
    ]
    if exchanges:
        # The lightest expert that may move disturbs the packing least.
        full, given, taker = min(exchanges, key=lambda exchange: (load_per_copy[exchange[1]], exchange))
        held[full][held[full].index(given)] = expert
        held[taker].append(given)
        return
    taker = with_room[0]
    others = [other for other in range(len(load_per_copy)) if other not in held[taker]]
    held[taker].append(max(others, key=lambda other: (load_per_copy[other], -other)))
