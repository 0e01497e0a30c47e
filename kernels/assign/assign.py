"""Turn the router's choice into rows to send, and received rows into groups by slot."""

import torch

from specmoe.errors import UsageError
from specmoe.kernels.assign.assignment import Assignment, SlotGroups
from specmoe.kernels.assign.reference import assign_reference, group_by_slot_reference, rows_of_pairs
from specmoe.kernels.checks import check_argument, check_values
from specmoe.kernels.routing_tables import RoutingTables

MAX_EXPERTS = 1024
MAX_TOP_K = 32
MAX_RANKS = 256


def assign(
    top_k_index: torch.Tensor, top_k_weights: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables
) -> Assignment:
    """Choose the slot of every (token, expert) pair and list the rows that carry tokens to them, without repeats.

    top_k_index: int64 or int32 [T, K], logical experts, K distinct ones per token. top_k_weights: floating [T, K].
    home_rank: int32 [T], the rank on which each token starts. Deterministic; nothing waits for the device.
    Raises `UsageError` for a wrong shape, dtype, device or layout, and on the CPU for values out of range.

    What the home rank holds is served there. The rest goes by `tables.replica_choice`. `static`: to `dispatch_slot`.
    `cover`: while experts are unserved, the rank that holds most of them serves all of them that it holds; among
    equals one on the home's node, then the one that `dispatch_slot` names for most of the unserved, then the lowest
    `(rank - home) mod R`.
    """
    device, E, R = tables.device, tables.num_logical_experts, tables.ep_size
    top_k = top_k_index.shape[-1]
    if E > MAX_EXPERTS or R > MAX_RANKS or top_k > MAX_TOP_K:
        raise UsageError(
            f"{E} experts, top-{top_k} and {R} ranks were given; at most {MAX_EXPERTS}, top-{MAX_TOP_K} and "
            f"{MAX_RANKS} are supported"
        )
    check_argument("top_k_index", top_k_index, (torch.int64, torch.int32), (-1, -1), device)
    check_argument("top_k_weights", top_k_weights, _FLOATS, top_k_index.shape, device)
    check_argument("home_rank", home_rank, (torch.int32,), top_k_index.shape[:1], device)
    check_values("top_k_index", top_k_index, 0, E)
    check_values("home_rank", home_rank, 0, R)
    if device.type == "cuda":
        from specmoe.kernels.assign.fused import assign_fused

        return assign_fused(top_k_index, top_k_weights, home_rank, tables, tables.replica_choice)
    return assign_reference(top_k_index, top_k_weights, home_rank, tables)


def assign_slots(
    pair_slot: torch.Tensor, weights: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables
) -> Assignment:
    """The rows for pairs whose slots are chosen already, such as those that a capacity leaves.

    pair_slot: int32 [T, K], -1 for a dropped pair. weights: floating [T, K]. home_rank: int32 [T].
    """
    check_argument("pair_slot", pair_slot, (torch.int32,), (-1, -1), tables.device)
    check_argument("weights", weights, _FLOATS, pair_slot.shape, tables.device)
    check_argument("home_rank", home_rank, (torch.int32,), pair_slot.shape[:1], tables.device)
    check_values("pair_slot", pair_slot, -1, tables.num_physical_experts)
    if tables.device.type == "cuda":
        from specmoe.kernels.assign.fused import assign_fused

        return assign_fused(pair_slot, weights, home_rank, tables, "given")
    return rows_of_pairs(pair_slot, weights, tables)


def group_by_slot(row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int = 1) -> SlotGroups:
    """Where each pair of received rows goes in slot-major order; within a slot by row, then by place in the row.

    row_slots: int32 [N, K], the slots that each row is for, -1 for none; the others lie in
    `first_slot : first_slot + num_slots`, the slots held here. alignment: every slot begins at a multiple of it, as
    grouped matrix products ask for; the places in between hold nothing. Deterministic; nothing waits for the device.
    """
    if alignment < 1:
        raise UsageError(f"alignment is {alignment}, at least 1 was expected")
    check_argument("row_slots", row_slots, (torch.int32,), (-1, -1), row_slots.device)
    check_values("row_slots", row_slots, -1, first_slot + num_slots)
    if row_slots.is_cuda:
        from specmoe.kernels.assign.group_fused import group_by_slot_fused

        return group_by_slot_fused(row_slots, first_slot, num_slots, alignment)
    return group_by_slot_reference(row_slots, first_slot, num_slots, alignment)


_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
