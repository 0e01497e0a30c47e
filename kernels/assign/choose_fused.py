"""Choose slots in Triton, without numbering rows."""

import torch

from specmoe.kernels.assign.choose import choose_slots
from specmoe.kernels.assign.number import store_slots
from specmoe.kernels.assign.token_block import TokenBlock
from specmoe.kernels.launch.compiler import ceil_div, kernel, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.launch.operator import operator
from specmoe.kernels.routing_tables import RoutingTables


def choose_slots_fused(expert: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
    """int32 [T, K]: the slot that serves each pair by the plan's replica choice; -1 where the expert is -1.

    expert: integer [T, K]; home_rank: int32 [T].
    """
    slot: torch.Tensor = choose_slots_op(
        expert, home_rank, tables.dispatch_slot, tables.slot_on_rank, tables.rank_bits, tables.rank_of_slot,
        tables.node_of_rank, tables.replica_choice,
    )  # fmt: skip
    return slot


def _new_slots(expert: torch.Tensor, *_: object) -> torch.Tensor:
    return expert.new_empty(expert.shape, dtype=torch.int32)


@operator("choose_slots", _new_slots)
def choose_slots_op(
    expert: torch.Tensor,
    home_rank: torch.Tensor,
    dispatch_slot: torch.Tensor,
    slot_on_rank: torch.Tensor,
    rank_bits: torch.Tensor,
    rank_of_slot: torch.Tensor,
    node_of_rank: torch.Tensor,
    choice: str,
) -> torch.Tensor:
    """int32 [T, K]."""
    (num_tokens, top_k), (num_ranks, num_experts) = expert.shape, dispatch_slot.shape
    pair_slot = _new_slots(expert)
    if pair_slot.numel() == 0:
        return pair_slot
    block = TokenBlock.of_many_programs(top_k, num_ranks)
    with device_of(expert):
        _choose[(ceil_div(num_tokens, block.tokens),)](
            expert, home_rank, dispatch_slot, slot_on_rank, rank_bits, rank_of_slot, node_of_rank, pair_slot,
            num_tokens, num_experts, num_ranks, rank_of_slot.shape[0], CHOICE=choice, num_warps=block.warps,
            **block.constants,
        )  # fmt: skip
    return pair_slot


@kernel
def _choose(
    expert: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor, rank_bits: tl.tensor,
    rank_of_slot: tl.tensor, node_of_rank: tl.tensor, pair_slot: tl.tensor, num_tokens: tl.tensor,
    num_experts: tl.tensor, num_ranks: tl.tensor, num_slots: tl.tensor, TOP_K: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, R: tl.constexpr, CHOICE: tl.constexpr,
) -> None:  # fmt: skip
    token_T = tl.program_id(0) * T + tl.arange(0, T)
    slot_KT = choose_slots(
        expert, home_rank, dispatch_slot, slot_on_rank, rank_bits, rank_of_slot, node_of_rank, token_T, num_tokens,
        num_experts, num_ranks, num_slots, TOP_K, K, R, CHOICE,
    )  # fmt: skip
    store_slots(pair_slot, slot_KT, token_T, num_tokens, TOP_K, K)
