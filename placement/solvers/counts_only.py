"""The most even plan from expert counts alone: nothing is known of which experts work together.

Loads are judged two ways: by the dispatch table, and with each expert's pairs spread equally over its copies, as by
engines that choose copies themselves. Of several ways to copy and pack the experts each layer takes the one with the
lightest heaviest rank: numbers of copies that divide the ranks, for which both ways agree; any numbers of copies; and
EPLB's own plan where either way finds it more even. Where the router has expert groups that divide among the nodes,
experts stay on their group's node as far as even loads allow.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.baselines.build import build_plan
from specmoe.placement.baselines.eplb import eplb, is_hierarchical, pack_groups
from specmoe.placement.check import load_from_counts, relative_load
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.even_groups import even_groups
from specmoe.placement.solvers.even_placement import EVEN, EvenLayer, Ranks, even_placement
from specmoe.placement.solvers.quota_dispatch import quota_dispatch
from specmoe.placement.solvers.replica_counts import divisors, replica_counts
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

MISSING = "the profile has expert counts alone: loads are even, co-activation was not available"


def balance_counts(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan, which says in `predicted["missing"]` what the profile lacks."""
    groups = options.expert_groups or 1
    if options.group_limited:
        held = topology.slots_of_rank(profile.num_logical_experts)
        layers = [even_groups(counts, held, topology.speed_of_rank, groups) for counts in profile.expert_counts]
        plan = _plan(profile, topology, options, layers)
    else:
        plan = _most_even(profile, topology, options)
    load = load_from_counts(plan, profile).max(axis=1)
    plan = loads_counted(plan, profile)
    return replace(plan, predicted={**plan.predicted, "missing": [MISSING, *_above_cap(plan, load, options)]})


def loads_counted(plan: PlacementPlan, profile: RoutingProfile) -> PlacementPlan:
    """The plan with the metrics that counts alone give in `predicted["profile"]`, the means over layers."""
    load = load_from_counts(plan, profile).max(axis=1)
    metrics = {"load_imbalance": float(load.mean()), "balancedness": float((1.0 / load).mean())}
    return replace(plan, predicted={**plan.predicted, "profile": metrics})


def _most_even(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """The plan of the most even layers; EPLB's where none is better."""
    E, R = profile.num_logical_experts, topology.ep_size
    slots = topology.slots_of_rank(E, options.extra_slots)
    layers = []
    for counts in profile.expert_counts:
        ranks = _ranks(counts, topology, slots, options.expert_groups or 1)
        steps = (divisors(R), range(1, R + 1)) if slots.sum() > E else ([1],)
        tried = (even_placement(counts, replica_counts(counts, int(slots.sum()), step), ranks) for step in steps)
        layers.append(min(tried, key=lambda layer: layer.heaviest))
    plan, other = _plan(profile, topology, options, layers), eplb(profile, topology, options)
    is_worse: NDArray[np.bool_] = np.any(_heaviest(plan, profile) > _heaviest(other, profile) + EVEN, axis=0)
    return replace(
        plan,
        physical_to_logical=np.where(is_worse[:, None], other.physical_to_logical, plan.physical_to_logical),
        dispatch_slot=np.where(is_worse[:, None, None], other.dispatch_slot, plan.dispatch_slot),
    )


def _heaviest(plan: PlacementPlan, profile: RoutingProfile) -> NDArray[np.float64]:
    """float64 [2, L]: the heaviest rank's relative load by the dispatch table, and by equal shares."""
    pairs = (plan.holds * (profile.expert_counts / plan.holds.sum(axis=1))[:, None, :]).sum(axis=2)
    by_shares = relative_load(pairs, plan.topology.speed_of_rank)
    return np.stack([load_from_counts(plan, profile).max(axis=1), by_shares.max(axis=1)])


def _ranks(counts: NDArray[np.int64], topology: Topology, slots: NDArray[np.int32], groups: int) -> Ranks:
    """The ranks of one layer: nodes are regions where every node can take whole groups, else there is one region."""
    home, region = np.zeros(len(counts), dtype=np.int32), np.zeros(topology.ep_size, dtype=np.int32)
    if is_hierarchical(len(counts), slots, topology.ranks_per_node, groups):
        region = topology.node_of_rank
        for node, own in enumerate(pack_groups(counts.reshape(groups, -1).sum(axis=1), topology.num_nodes)):
            home.reshape(groups, -1)[own] = node
    return Ranks(slots=slots, speed=topology.speed_of_rank, region=region, home=home)


def _plan(profile: RoutingProfile, topology: Topology, options: SolveOptions, layers: list[EvenLayer]) -> PlacementPlan:
    slots = topology.slots_of_rank(profile.num_logical_experts, options.extra_slots)
    ends = np.cumsum(slots)[:-1]
    held = [[part.tolist() for part in np.split(layer.expert_of_slot, ends)] for layer in layers]
    plan = build_plan(profile, topology, options, "auto", held)
    tables = [
        quota_dispatch(layer.expert_of_slot, layer.quota, plan.rank_of_physical, topology.node_of_rank)
        for layer in layers
    ]
    return replace(plan, dispatch_slot=np.stack(tables))


def _above_cap(plan: PlacementPlan, load: NDArray[np.float64], options: SolveOptions) -> list[str]:
    """What to say of a cap that counts alone cannot keep: the plan is as even as could be found all the same."""
    worst = int(load.argmax())
    if load[worst] <= options.max_imbalance * (1.0 + EVEN):
        return []
    return [
        f"layer {plan.layer_ids[worst]}: the most even placement found has {load[worst]:.3f} times the mean load on "
        f"its heaviest rank, {load[worst] - options.max_imbalance:.3f} above the cap of {options.max_imbalance:g}; "
        "more --extra-slots let hot experts be shared"
    ]
