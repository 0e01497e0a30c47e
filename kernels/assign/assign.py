"""Turn the router's choice into rows to send, and received rows into groups by slot."""

import torch

from specmoe.errors import UsageError
from specmoe.kernels.assign.assignment import Assignment, SlotGroups
from specmoe.kernels.assign.compiled import choose_slots_compiled, group_by_slot_compiled, rows_of_pairs_compiled
from specmoe.kernels.assign.reference import assign_reference, group_by_slot_reference, rows_of_pairs
from specmoe.kernels.checks import FLOATS, check_argument, check_values
from specmoe.kernels.routing_tables import RoutingTables

MAX_EXPERTS = 1024
MAX_TOP_K = 32
MAX_RANKS = 256
MAX_TOKENS = 1 << 20


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
    check_argument("top_k_index", top_k_index, (torch.int64, torch.int32), (-1, -1), device)
    _check_others(top_k_index, top_k_weights, "top_k_weights", home_rank, tables)
    check_values("top_k_index", top_k_index, 0, E)
    check_values("home_rank", home_rank, 0, R)
    if device.type == "cuda":
        from specmoe.kernels.assign.fused import assign_fused

        return assign_fused(top_k_index, top_k_weights, home_rank, tables, tables.replica_choice)
    if device.type == "cpu":
        return rows_of_pairs_compiled(choose_slots_compiled(top_k_index, home_rank, tables), top_k_weights, tables)
    return assign_reference(top_k_index, top_k_weights, home_rank, tables)


def assign_slots(
    pair_slot: torch.Tensor, weights: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables
) -> Assignment:
    """The rows for pairs whose slots are chosen already, such as those that a capacity leaves.

    pair_slot: int32 [T, K], -1 for a dropped pair. weights: floating [T, K]. home_rank: int32 [T]. Raises `UsageError`
    as `assign` does.
    """
    check_argument("pair_slot", pair_slot, (torch.int32,), (-1, -1), tables.device)
    _check_others(pair_slot, weights, "weights", home_rank, tables)
    check_values("pair_slot", pair_slot, 0, tables.num_physical_experts, or_none=True)
    if tables.device.type == "cuda":
        from specmoe.kernels.assign.fused import assign_fused

        return assign_fused(pair_slot, weights, home_rank, tables, "given")
    if tables.device.type == "cpu":
        return rows_of_pairs_compiled(pair_slot, weights, tables)
    return rows_of_pairs(pair_slot, weights, tables)


def group_by_slot(row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int = 1) -> SlotGroups:
    """Where each pair of received rows goes in slot-major order; within a slot by row, then by place in the row.

    row_slots: int32 [N, K], the slots that each row is for, -1 for none; the others lie in
    `first_slot : first_slot + num_slots`, the slots held here. alignment: every slot begins at a multiple of it, as
    grouped matrix products ask for; the places in between hold nothing. Deterministic; nothing waits for the device.
    """
    for name, value, least in (("alignment", alignment, 1), ("first_slot", first_slot, 0), ("num_slots", num_slots, 0)):
        if value < least:
            raise UsageError(f"{name} is {value}, at least {least} was expected")
    check_argument("row_slots", row_slots, (torch.int32,), (-1, -1), row_slots.device)
    check_values("row_slots", row_slots, first_slot, first_slot + num_slots, or_none=True)
    if row_slots.is_cuda:
        from specmoe.kernels.assign.group_fused import group_by_slot_fused

        return group_by_slot_fused(row_slots, first_slot, num_slots, alignment)
    if row_slots.device.type == "cpu":
        return group_by_slot_compiled(row_slots, first_slot, num_slots, alignment)
    return group_by_slot_reference(row_slots, first_slot, num_slots, alignment)


def _check_others(
    chosen: torch.Tensor, weights: torch.Tensor, name: str, home_rank: torch.Tensor, tables: RoutingTables
) -> None:
    """That the sizes are supported, and that the arguments fit `chosen`, [T, K]."""
    (T, K), E, R = chosen.shape, tables.num_logical_experts, tables.ep_size
    if E > MAX_EXPERTS or R > MAX_RANKS or T > MAX_TOKENS or not 1 <= K <= MAX_TOP_K:
        raise UsageError(
            f"{T} tokens, {E} experts, top-{K} and {R} ranks were given; up to {MAX_TOKENS} tokens, {MAX_EXPERTS} "
            f"experts, top-1 to top-{MAX_TOP_K} and {MAX_RANKS} ranks are supported"
        )
    check_argument(name, weights, FLOATS, chosen.shape, tables.device)
    check_argument("home_rank", home_rank, (torch.int32,), (T,), tables.device)
