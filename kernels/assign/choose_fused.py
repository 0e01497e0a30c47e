"""Choose slots in Triton, without numbering rows."""

import torch

from specmoe.kernels.assign.choose import choose_slots
from specmoe.kernels.assign.fused import BLOCK_ELEMENTS, BLOCK_TOKENS
from specmoe.kernels.launch.compiler import ceil_div, kernel, power_of_two, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.routing_tables import RoutingTables


def choose_slots_fused(expert: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
    """int32 [T, K]: the slot that serves each pair by the plan's replica choice; -1 where the expert is -1.

    expert: integer [T, K]; home_rank: int32 [T].
    """
    slot: torch.Tensor = choose_slots_op(
        expert, home_rank, tables.dispatch_slot, tables.slot_on_rank, tables.rank_of_slot, tables.node_of_rank,
        tables.replica_choice,
    )  # fmt: skip
    return slot


@torch.library.custom_op("specmoe::choose_slots", mutates_args=())
def choose_slots_op(
    expert: torch.Tensor,
    home_rank: torch.Tensor,
    dispatch_slot: torch.Tensor,
    slot_on_rank: torch.Tensor,
    rank_of_slot: torch.Tensor,
    node_of_rank: torch.Tensor,
    choice: str,
) -> torch.Tensor:
    """int32 [T, K]."""
    (num_tokens, top_k), (num_ranks, num_experts) = expert.shape, dispatch_slot.shape
    pair_slot = expert.new_empty(expert.shape, dtype=torch.int32)
    if pair_slot.numel() == 0:
        return pair_slot
    k, r = power_of_two(top_k), power_of_two(num_ranks)
    tokens = min(max(BLOCK_ELEMENTS // (k * r), 1), BLOCK_TOKENS)
    with device_of(expert):
        _choose[(ceil_div(num_tokens, tokens),)](
            expert, home_rank, dispatch_slot, slot_on_rank, rank_of_slot, node_of_rank, pair_slot,
            num_tokens, num_experts, num_ranks, TOP_K=top_k, T=tokens, K=k, R=r, CHOICE=choice,
        )  # fmt: skip
    return pair_slot


@choose_slots_op.register_fake
def _(
    expert: torch.Tensor,
    home_rank: torch.Tensor,
    dispatch_slot: torch.Tensor,
    slot_on_rank: torch.Tensor,
    rank_of_slot: torch.Tensor,
    node_of_rank: torch.Tensor,
    choice: str,
) -> torch.Tensor:
    return expert.new_empty(expert.shape, dtype=torch.int32)


@kernel
def _choose(
    expert: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor,
    rank_of_slot: tl.tensor, node_of_rank: tl.tensor, pair_slot: tl.tensor, num_tokens: tl.tensor,
    num_experts: tl.tensor, num_ranks: tl.tensor, TOP_K: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
    R: tl.constexpr, CHOICE: tl.constexpr,
) -> None:  # fmt: skip
    token_T = tl.program_id(0) * T + tl.arange(0, T)
    choice_K = tl.arange(0, K)
    slot_TK = choose_slots(
        expert, home_rank, dispatch_slot, slot_on_rank, rank_of_slot, node_of_rank, token_T, num_tokens,
        num_experts, num_ranks, TOP_K, K, R, CHOICE,
    )  # fmt: skip
    inside_TK = (token_T < num_tokens)[:, None] & (choice_K < TOP_K)[None, :]
    tl.store(pair_slot + token_T[:, None] * TOP_K + choice_K[None, :], slot_TK, mask=inside_TK)
