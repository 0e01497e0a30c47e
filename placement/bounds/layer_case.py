"""One layer as the bounds see it: the profile's tokens, where the plan seats them, and the machine's limits."""

from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import homes_of
from specmoe.placement.metrics import layer_traffic
from specmoe.placement.objective import internode_surcharge
from specmoe.placement.plan import PlacementPlan, ReplicaChoice
from specmoe.placement.solvers.expert_sets import expert_sets
from specmoe.profiler.routing_profile import RoutingProfile

# As the check of a finished plan allows.
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class LayerCase:
    """sets: int32 [S, K], the distinct expert sets; homes_of_set: int64 [S, R], how many tokens of each start where.

    load: float64 [E], pairs of each expert; slots: int32 [R]; ceiling: float64 [R], the most pairs that a rank may
    serve; node: int32 [R]; surcharge: what another node costs beyond a copy. holds: bool [R, E], the plan's placement;
    cost: what it costs over all tokens by `replica_choice`; is_legal: whether it keeps the ceiling.
    """

    sets: NDArray[np.int32]
    homes_of_set: NDArray[np.int64]
    load: NDArray[np.float64]
    slots: NDArray[np.int32]
    ceiling: NDArray[np.float64]
    node: NDArray[np.int32]
    surcharge: float
    holds: NDArray[np.bool_]
    cost: float
    is_legal: bool
    replica_choice: ReplicaChoice = "static"

    @property
    def tokens_of_set(self) -> NDArray[np.int64]:
        """int64 [S]."""
        tokens: NDArray[np.int64] = self.homes_of_set.sum(axis=1)
        return tokens

    @property
    def num_tokens(self) -> int:
        return int(self.homes_of_set.sum())

    @property
    def num_experts(self) -> int:
        return len(self.load)

    @property
    def ep_size(self) -> int:
        return len(self.slots)

    @property
    def has_replicas(self) -> bool:
        return int(self.slots.sum()) > self.num_experts

    @property
    def rank_of_expert(self) -> NDArray[np.int32]:
        """int32 [E]: the lowest rank that holds each expert; the only one without replicas."""
        lowest: NDArray[np.int32] = self.holds.argmax(axis=0).astype(np.int32)
        return lowest


class LayerCases:
    """The layers of a plan over its profile's sample, one `LayerCase` at a time."""

    def __init__(self, plan: PlacementPlan, profile: RoutingProfile, max_imbalance: float) -> None:
        self.plan = plan
        self.profile = profile
        self.sample = profile.require_sample("a lower bound")
        self.max_imbalance = max_imbalance
        self.homes = homes_of(plan, self.sample)

    def of(self, plan: PlacementPlan) -> "LayerCases":
        """The same of another plan with the same tables, and so the same homes."""
        other = copy(self)
        other.plan = plan
        return other

    def case(self, layer: int, *, strict: bool = False) -> LayerCase:
        """Row `layer`. A plan that breaks the load cap is compared with all that are as even as itself; if `strict`,
        with those that keep the cap.
        """
        plan, E = self.plan, self.plan.num_logical_experts
        expert_ids, homes = self.sample.expert_ids[:, layer], self.homes[layer]
        merged = expert_sets(expert_ids, E)
        pair = merged.set_of_token.astype(np.int64) * plan.ep_size + homes
        homes_of_set = np.bincount(pair, minlength=len(merged.sets) * plan.ep_size).reshape(-1, plan.ep_size)
        traffic = layer_traffic(plan, self.sample, layer, homes)
        speed = plan.topology.speed_of_rank
        mean = traffic.pairs_of_rank.sum() / speed.sum()
        heaviest = float((traffic.pairs_of_rank / speed).max())
        ceiling = (self.max_imbalance + _TOLERANCE) * mean
        is_legal = heaviest <= ceiling or not strict
        surcharge = internode_surcharge(plan.topology)
        return LayerCase(
            sets=merged.sets,
            homes_of_set=homes_of_set.astype(np.int64),
            load=np.bincount(expert_ids.ravel(), minlength=E).astype(np.float64),
            slots=np.diff(plan.slot_offsets).astype(np.int32),
            ceiling=(max(ceiling, heaviest) if is_legal else ceiling) * speed,
            node=plan.topology.node_of_rank,
            surcharge=surcharge,
            holds=plan.holds[layer],
            cost=traffic.remote_copies + surcharge * traffic.internode_copies,
            is_legal=is_legal,
            replica_choice=plan.replica_choice,
        )
