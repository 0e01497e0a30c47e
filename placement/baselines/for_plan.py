"""The baselines that belong to a plan: the same ranks, nodes and attention, no tables, static choice."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from specmoe.placement.baselines.build import RankExperts, build_plan
from specmoe.placement.baselines.eplb import eplb_ranks
from specmoe.placement.baselines.linear import linear_ranks
from specmoe.placement.baselines.round_robin import round_robin_ranks
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingProfile


def baselines_for(plans: Sequence[PlacementPlan], profile: RoutingProfile) -> Iterator[tuple[str, PlacementPlan]]:
    """Named baselines of each distinct setting among `plans`; the first setting's have the plain names.

    `linear` and `round_robin` have no replicas; `eplb` has the plan's slots, and the counts of the profile's sample.
    """
    counts = sample_counts(profile)
    seen: set[tuple[object, ...]] = set()
    names: set[str] = set()
    for plan in plans:
        for method, baseline in _of_one_plan(plan, counts):
            if _identity(baseline) in seen:
                continue
            seen.add(_identity(baseline))
            name = next(name for name in _names(method, baseline) if name not in names)
            names.add(name)
            yield name, baseline


def sample_counts(profile: RoutingProfile) -> RoutingProfile:
    """A profile that holds no more than the expert counts of `profile`'s sample."""
    sample = profile.require_sample("comparing with baselines")
    return RoutingProfile(
        layer_ids=profile.layer_ids,
        expert_counts=sample.expert_counts(profile.num_logical_experts),
        num_logical_experts=profile.num_logical_experts,
        top_k=profile.top_k,
        num_tokens=sample.num_tokens,
        model_fingerprint=profile.model_fingerprint,
        source=profile.source,
    )


def _of_one_plan(plan: PlacementPlan, counts: RoutingProfile) -> Iterable[tuple[str, PlacementPlan]]:
    slots = np.diff(plan.slot_offsets).astype(np.int32)
    E, L = counts.num_logical_experts, counts.num_layers
    layers: dict[str, list[RankExperts]] = {
        "linear": [linear_ranks(E, slots)] * L,
        "round_robin": [round_robin_ranks(E, slots)] * L,
        "eplb": [eplb_ranks(row, slots, plan.topology.ranks_per_node, 1) for row in counts.expert_counts],
    }
    options = SolveOptions(attention=plan.attention, replica_choice="static")
    return [(method, build_plan(counts, plan.topology, options, method, held)) for method, held in layers.items()]


def _identity(plan: PlacementPlan) -> tuple[object, ...]:
    """All of a baseline that its metrics depend on."""
    experts, ranks = plan.physical_to_logical.tobytes(), plan.rank_of_physical.tobytes()
    return plan.method, plan.attention, plan.topology.ranks_per_node, experts, ranks


def _names(method: str, plan: PlacementPlan) -> Iterator[str]:
    """Names for a baseline, the plainest first, without end."""
    yield method
    nodes = f" on {plan.topology.num_nodes} nodes" if plan.topology.num_nodes > 1 else ""
    setting = f"{plan.ep_size} ranks{nodes}, {plan.attention}, {plan.num_physical_experts} slots"
    yield f"{method} ({setting})"
    number = 2
    while True:
        yield f"{method} ({setting}) {number}"
        number += 1
