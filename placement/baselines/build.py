"""Turn the experts that each rank holds into a plan without tables."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.fair_dispatch import fair_dispatch
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

RankExperts = list[list[int]]


def build_plan(
    profile: RoutingProfile, topology: Topology, options: SolveOptions, method: str, layers: Sequence[RankExperts]
) -> PlacementPlan:
    """The plan that holds `layers[l][r]` (logical experts, slot by slot) on rank r at row l, with a fair dispatch.

    A rank must hold equally many experts in all layers.
    """
    sizes = [len(experts) for experts in layers[0]]
    experts = np.array([[expert for rank in layer for expert in rank] for layer in layers], dtype=np.int32)
    rank_of_physical = np.repeat(np.arange(topology.ep_size, dtype=np.int32), sizes)
    return PlacementPlan(
        topology=topology,
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        attention=options.attention,
        replica_choice=options.replica_choice or "static",
        layer_ids=profile.layer_ids,
        physical_to_logical=experts,
        rank_of_physical=rank_of_physical,
        dispatch_slot=fair_dispatch(experts, rank_of_physical, topology.node_of_rank, profile.expert_counts),
        method=method,
        seed=options.seed,
        profile_fingerprint=profile.fingerprint,
        model_fingerprint=profile.model_fingerprint,
    )


def even_sizes(num_experts: int, slots_of_rank: NDArray[np.int32]) -> list[int]:
    """How many experts each rank holds when they are dealt out evenly: sizes differ by one, the low ranks first.

    A rank takes no more than its slots; the others share what it leaves.
    """
    sizes = [0] * len(slots_of_rank)
    for _ in range(num_experts):
        free = [rank for rank, slots in enumerate(slots_of_rank) if sizes[rank] < slots]
        sizes[min(free, key=lambda rank: (sizes[rank], rank))] += 1
    return sizes


def fill_free_slots(held: RankExperts, slots_of_rank: NDArray[np.int32], num_experts: int) -> RankExperts:
    """`held` with the free slots of every rank filled by the experts 0, 1, 2, ... in turn, never beside a twin."""
    filled, following = [list(experts) for experts in held], 0
    for experts, slots in zip(filled, slots_of_rank, strict=True):
        while len(experts) < slots:
            while following % num_experts in experts:
                following += 1
            experts.append(following % num_experts)
            following += 1
    return filled
