"""A capacity policy at work in one MoE layer, and what the layers must know of the running forward pass."""

import torch

from specmoe.kernels.assign.assign import assign_slots
from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.capacity.divide import SourceShares
from specmoe.kernels.capacity.limit import limit_pairs
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.router_scores import RouterScores
from specmoe.runtime.token_places import TokenPlaces


class ForwardPass:
    """What a policy wants to know of the running forward pass; one for all layers."""

    def __init__(self, policy: CapacityPolicy) -> None:
        self._policy = policy
        self.is_bounded = True
        self.priority: torch.Tensor | None = None

    def begin(self, input_ids: torch.Tensor | None, new_tokens: int) -> None:
        """Note the batch that runs next; input_ids: int64 [B, S] or None; new_tokens: S."""
        self.is_bounded = new_tokens > 1 or self._policy.at_decode
        self.priority = None
        if self._policy.priority is not None and input_ids is not None:
            self.priority = self._policy.priority(input_ids).flatten()


class LayerCapacity:
    """block: the module that holds the layer's router and experts; shares: of the source ranks, None for even ones."""

    def __init__(
        self,
        policy: CapacityPolicy,
        forward_pass: ForwardPass,
        block: torch.nn.Module,
        shares: SourceShares | None,
    ) -> None:
        self._policy = policy
        self._shares = shares
        self.forward_pass = forward_pass
        self._router = RouterScores(block) if policy.overflow == "reroute" else None

    def assign(
        self,
        top_k_index: torch.Tensor,
        weights: torch.Tensor,
        home_rank: torch.Tensor,
        priority: torch.Tensor | None,
        tables: RoutingTables,
        tokens: TokenPlaces,
    ) -> tuple[Assignment, torch.Tensor]:
        """The assignment of what the policy lets through, and bool [T, K], which pairs it rerouted; the arguments are
        those of `assign`, with priority floating [T]; tokens: which rows of the block's input they are."""
        scores = None if self._router is None else self._router.of_every_expert(top_k_index, weights, tokens)
        limits = self._policy.limits(weights, home_rank, tables, priority, scores, self._shares)
        limited = limit_pairs(top_k_index, weights, home_rank, tables, limits)
        return assign_slots(limited.pair_slot, limited.weights, home_rank, tables), limited.rerouted
