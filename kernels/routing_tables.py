"""What `assign` must know of one layer of a plan, as tensors on the device that runs it."""

from dataclasses import dataclass

import numpy as np
import torch

from specmoe.artifact import Array
from specmoe.placement.plan import PlacementPlan, ReplicaChoice


@dataclass(frozen=True, kw_only=True)
class RoutingTables:
    """One MoE layer of a plan. E logical experts, P slots, R ranks; all int32 and on one device.

    dispatch_slot [R, E]: the slot that a token at home on a rank uses for an expert. slot_on_rank [R, E]: the slot in
    which a rank holds an expert, -1 where it holds none. rank_of_slot [P]. slot_offsets [R + 1]: rank r owns the slots
    `slot_offsets[r] : slot_offsets[r + 1]`. node_of_rank [R].
    """

    dispatch_slot: torch.Tensor
    slot_on_rank: torch.Tensor
    rank_of_slot: torch.Tensor
    slot_offsets: torch.Tensor
    node_of_rank: torch.Tensor
    replica_choice: ReplicaChoice

    @property
    def ep_size(self) -> int:
        return self.dispatch_slot.shape[0]

    @property
    def num_logical_experts(self) -> int:
        return self.dispatch_slot.shape[1]

    @property
    def num_physical_experts(self) -> int:
        return self.rank_of_slot.shape[0]

    @property
    def device(self) -> torch.device:
        return self.dispatch_slot.device

    @classmethod
    def of_layer(cls, plan: PlacementPlan, row: int, device: torch.device) -> "RoutingTables":
        """The tables of `plan`'s row `row` (not the decoder layer's number) on `device`."""
        slot_on_rank = np.full((plan.ep_size, plan.num_logical_experts), -1, dtype=np.int32)
        slots = np.arange(plan.num_physical_experts, dtype=np.int32)
        slot_on_rank[plan.rank_of_physical, plan.physical_to_logical[row]] = slots

        def on_device(array: Array) -> torch.Tensor:
            return torch.tensor(array, dtype=torch.int32, device=device)

        return cls(
            dispatch_slot=on_device(plan.dispatch_slot[row]),
            slot_on_rank=on_device(slot_on_rank),
            rank_of_slot=on_device(plan.rank_of_physical),
            slot_offsets=on_device(plan.slot_offsets),
            node_of_rank=on_device(plan.topology.node_of_rank),
            replica_choice=plan.replica_choice,
        )
