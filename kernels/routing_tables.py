"""What `assign` must know of one layer of a plan, as tensors on the device that runs it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from specmoe.artifact import Array
from specmoe.kernels.checks import check_argument
from specmoe.placement.plan import PlacementPlan, ReplicaChoice

WORD_BITS = 32


@dataclass(frozen=True, kw_only=True)
class RoutingTables:
    """One MoE layer of a plan. E logical experts, P slots, R ranks; all int32, contiguous and on one device.

    dispatch_slot [R, E]: the slot that a token at home on a rank uses for an expert. slot_on_rank [R, E]: the slot in
    which a rank holds an expert, -1 where it holds none. rank_of_slot [P]. slot_offsets [R + 1]: rank r owns the slots
    `slot_offsets[r] : slot_offsets[r + 1]`. node_of_rank [R]. Raises `UsageError` where a table does not fit.
    """

    dispatch_slot: torch.Tensor
    slot_on_rank: torch.Tensor
    rank_of_slot: torch.Tensor
    slot_offsets: torch.Tensor
    node_of_rank: torch.Tensor
    replica_choice: ReplicaChoice

    def __post_init__(self) -> None:
        R = self.dispatch_slot.shape[0]
        shapes = {
            "dispatch_slot": (-1, -1), "slot_on_rank": self.dispatch_slot.shape, "rank_of_slot": (-1,),
            "slot_offsets": (R + 1,), "node_of_rank": (R,),
        }  # fmt: skip
        for name, shape in shapes.items():
            check_argument(name, getattr(self, name), (torch.int32,), shape, self.device)
        # Made here, not when a CUDA graph is being captured.
        _ = self.rank_bits

    @cached_property
    def rank_bits(self) -> torch.Tensor:
        """int32 [E, ceil(R / 32)]: which ranks hold an expert, rank r as bit `r % 32` of word `r // 32`."""
        return _rank_bits(self.slot_on_rank)

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


def _rank_bits(slot_on_rank: torch.Tensor) -> torch.Tensor:
    """int32 [E, ceil(R / 32)]."""
    num_ranks, num_experts = slot_on_rank.shape
    words = -(-num_ranks // WORD_BITS)
    held = torch.nn.functional.pad((slot_on_rank >= 0).T.long(), (0, words * WORD_BITS - num_ranks))
    bits = held.view(num_experts, words, WORD_BITS) << torch.arange(WORD_BITS, device=held.device)
    word = bits.sum(dim=2)
    # The highest bit is int32's sign.
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)
