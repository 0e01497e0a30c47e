"""Assign in plain PyTorch, slow and meant to be obviously right.

Shape suffixes: T tokens, K experts per token, R ranks, E logical experts, N rows.
"""

import torch

from specmoe.kernels.assign.assignment import Assignment, SlotGroups
from specmoe.kernels.routing_tables import RoutingTables

# The cover rule looks at every rank for every pair; tokens are taken in blocks of this many to bound the memory.
COVER_BLOCK_TOKENS = 4096


def assign_reference(
    top_k_index: torch.Tensor, top_k_weights: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables
) -> Assignment:
    """As `assign`, for checked arguments."""
    pair_slot_TK = choose_slots(top_k_index.long(), home_rank.long(), tables)
    return rows_of_pairs(pair_slot_TK, top_k_weights, tables)


def choose_slots(expert_TK: torch.Tensor, home_T: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
    """int32 [T, K]: the slot that serves each pair by the plan's replica choice; -1 where the expert is -1."""
    if tables.replica_choice == "static":
        return torch.where(expert_TK >= 0, tables.dispatch_slot[home_T[:, None], expert_TK], -1)
    starts = range(0, max(len(home_T), 1), COVER_BLOCK_TOKENS)
    blocks = [slice(start, start + COVER_BLOCK_TOKENS) for start in starts]
    return torch.cat([_cover(expert_TK[block], home_T[block], tables) for block in blocks])


def rows_of_pairs(pair_slot_TK: torch.Tensor, weight_TK: torch.Tensor, tables: RoutingTables) -> Assignment:
    """One row per token and rank that serves any of its pairs, numbered by rank, then token."""
    (T, K), R = pair_slot_TK.shape, tables.ep_size
    kept_TK = pair_slot_TK >= 0
    # Dropped pairs go to a rank of their own, R, which is cut off.
    rank_TK = torch.where(kept_TK, tables.rank_of_slot[pair_slot_TK.clamp(min=0).long()], R).long()
    ones_TK = torch.ones_like(rank_TK)
    pairs_TR = torch.zeros((T, R + 1), dtype=torch.int64, device=rank_TK.device).scatter_add_(1, rank_TK, ones_TK)
    goes_TR = pairs_TR[:, :R] > 0
    row_offsets = _offsets(goes_TR.sum(dim=0))
    row_TR = row_offsets[:R] + goes_TR.cumsum(dim=0) - 1
    row_TK = torch.where(kept_TK, row_TR.gather(1, rank_TK.clamp(max=R - 1)), -1)
    nth_TK = _occurrences_before(rank_TK)
    first_TK = kept_TK & (nth_TK == 0)
    num_rows = T * min(K, R)
    return Assignment(
        pair_slot=pair_slot_TK.to(torch.int32),
        row_of_pair=row_TK.to(torch.int32),
        token_rows=torch.where(first_TK, row_TK, -1).to(torch.int32),
        row_offsets=row_offsets.to(torch.int32),
        pair_offsets=_offsets(pairs_TR[:, :R].sum(dim=0)).to(torch.int32),
        row_slots=_per_row(pair_slot_TK.to(torch.int32), -1, row_TK, nth_TK, num_rows),
        row_weights=_per_row(weight_TK.to(torch.float32), 0.0, row_TK, nth_TK, num_rows),
    )


def group_by_slot_reference(row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int) -> SlotGroups:
    """As `group_by_slot`, for checked arguments."""
    flat = row_slots.flatten()
    local = torch.where(flat >= 0, flat - first_slot, num_slots).long()
    counts = torch.zeros(num_slots + 1, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, local, torch.ones_like(local))
    sizes = (counts[:num_slots] + alignment - 1) // alignment * alignment
    offsets = _offsets(sizes)
    order = torch.argsort(local, stable=True)
    nth = torch.empty_like(order)
    nth[order] = torch.arange(len(order), device=order.device) - _offsets(counts)[local[order]]
    positions = torch.where(flat >= 0, offsets[local] + nth, -1)
    return SlotGroups(
        positions=positions.view_as(row_slots).to(torch.int32),
        slot_offsets=offsets.to(torch.int32),
        slot_counts=counts[:num_slots].to(torch.int32),
    )


def _cover(expert_TK: torch.Tensor, home_T: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
    R = tables.ep_size
    holder_slot_TKR = tables.slot_on_rank.T[expert_TK]
    named_rank_TK = tables.rank_of_slot[tables.dispatch_slot[home_T[:, None], expert_TK].long()].long()
    rank_R = torch.arange(R, device=home_T.device)
    same_node_TR = tables.node_of_rank[home_T][:, None] == tables.node_of_rank[None, :]
    nearness_TR = R - 1 - (rank_R[None, :] - home_T[:, None]) % R
    at_home_TK = holder_slot_TKR.gather(2, home_T[:, None, None].expand(*expert_TK.shape, 1)).squeeze(2)
    slot_TK = torch.where(expert_TK >= 0, at_home_TK, -1)
    for _ in range(expert_TK.shape[1]):
        unserved_TK = (slot_TK < 0) & (expert_TK >= 0)
        held_TR = ((holder_slot_TKR >= 0) & unserved_TK[:, :, None]).sum(dim=1)
        named_TR = torch.zeros_like(held_TR).scatter_add_(1, named_rank_TK, unserved_TK.long())
        # The tie-breaks as digits of one number, the first rule first.
        digits = expert_TK.shape[1] + 1
        score_TR = ((held_TR * 2 + same_node_TR) * digits + named_TR) * R + nearness_TR
        best_T = score_TR.argmax(dim=1)
        on_best_TK = holder_slot_TKR.gather(2, best_T[:, None, None].expand(*expert_TK.shape, 1)).squeeze(2)
        slot_TK = torch.where(unserved_TK, on_best_TK, slot_TK)
    return slot_TK


def _occurrences_before(rank_TK: torch.Tensor) -> torch.Tensor:
    """int64 [T, K]: how many earlier pairs of the same token go to the same rank."""
    same_TKK = rank_TK[:, :, None] == rank_TK[:, None, :]
    return same_TKK.tril(diagonal=-1).sum(dim=2)


def _per_row(
    value_TK: torch.Tensor, empty: float, row_TK: torch.Tensor, nth_TK: torch.Tensor, num_rows: int
) -> torch.Tensor:
    """[N, K]: each pair's value at (its row, its place in the row), `empty` elsewhere."""
    out_NK = torch.full((num_rows, value_TK.shape[1]), empty, dtype=value_TK.dtype, device=value_TK.device)
    kept_TK = row_TK >= 0
    out_NK[row_TK[kept_TK], nth_TK[kept_TK]] = value_TK[kept_TK]
    return out_NK


def _offsets(counts: torch.Tensor) -> torch.Tensor:
    """int64 [len + 1]: 0 and the running sums."""
    return torch.nn.functional.pad(counts.cumsum(dim=0), (1, 0))
