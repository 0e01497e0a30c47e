"""Assign and group on the CPU: the rules of the reference, token by token in compiled code.

Shape suffixes: T tokens, K experts per token, R ranks, E logical experts, N rows, S slots held here.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.kernels.assign.assignment import Assignment, SlotGroups
from specmoe.kernels.routing_tables import RoutingTables


def choose_slots_compiled(expert: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
    """int32 [T, K], as `choose_slots`; expert: int64 or int32 [T, K], home_rank: int32 [T]."""
    slot = torch.empty(expert.shape, dtype=torch.int32)
    dispatch_slot = tables.dispatch_slot.numpy()
    if tables.replica_choice == "static":
        _look_up(expert.numpy(), home_rank.numpy(), dispatch_slot, slot.numpy())
    else:
        maps = (tables.slot_on_rank.numpy(), tables.rank_of_slot.numpy(), tables.node_of_rank.numpy())
        _cover(expert.numpy(), home_rank.numpy(), dispatch_slot, *maps, slot.numpy())
    return slot


def rows_of_pairs_compiled(pair_slot: torch.Tensor, weights: torch.Tensor, tables: RoutingTables) -> Assignment:
    """As `rows_of_pairs`; pair_slot: int32 [T, K], weights: floating [T, K]."""
    (T, K), R = pair_slot.shape, tables.ep_size
    num_rows = T * min(K, R)
    rows = torch.empty((2, T, K), dtype=torch.int32)
    offsets = torch.empty((2, R + 1), dtype=torch.int32)
    row_slots = torch.empty((num_rows, K), dtype=torch.int32)
    row_weights = torch.empty((num_rows, K))
    _number_rows(
        pair_slot.numpy(),
        weights.float().numpy(),
        tables.rank_of_slot.numpy(),
        rows.numpy(),
        offsets.numpy(),
        row_slots.numpy(),
        row_weights.numpy(),
    )
    return Assignment(
        pair_slot=pair_slot,
        row_of_pair=rows[0],
        token_rows=rows[1],
        row_offsets=offsets[0],
        pair_offsets=offsets[1],
        row_slots=row_slots,
        row_weights=row_weights,
    )


def group_by_slot_compiled(row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int) -> SlotGroups:
    """As `group_by_slot`, for checked arguments."""
    positions = torch.empty_like(row_slots)
    slot_offsets = torch.empty(num_slots + 1, dtype=torch.int32)
    slot_counts = torch.empty(num_slots, dtype=torch.int32)
    _group(row_slots.numpy(), first_slot, alignment, positions.numpy(), slot_offsets.numpy(), slot_counts.numpy())
    return SlotGroups(positions=positions, slot_offsets=slot_offsets, slot_counts=slot_counts)


@compiled
def _look_up(
    expert_TK: NDArray[np.int64], home_T: NDArray[np.int32], dispatch_slot_RE: NDArray[np.int32],
    slot_TK: NDArray[np.int32],
) -> None:  # fmt: skip
    for token in range(expert_TK.shape[0]):
        for choice in range(expert_TK.shape[1]):
            expert = expert_TK[token, choice]
            slot_TK[token, choice] = dispatch_slot_RE[home_T[token], expert] if expert >= 0 else -1


@compiled
def _cover(
    expert_TK: NDArray[np.int64], home_T: NDArray[np.int32], dispatch_slot_RE: NDArray[np.int32],
    slot_on_rank_RE: NDArray[np.int32], rank_of_slot_P: NDArray[np.int32], node_of_rank_R: NDArray[np.int32],
    slot_TK: NDArray[np.int32],
) -> None:  # fmt: skip
    """The tie-breaks are digits of one number, the first rule first, as in the reference."""
    (T, K), R = expert_TK.shape, len(node_of_rank_R)
    score_R = np.empty(R, dtype=np.int64)
    for token in range(T):
        home = home_T[token]
        left = 0
        for choice in range(K):
            expert = expert_TK[token, choice]
            slot_TK[token, choice] = slot_on_rank_RE[home, expert] if expert >= 0 else -1
            left += expert >= 0 and slot_TK[token, choice] < 0
        for _ in range(K):
            if left == 0:
                break
            for rank in range(R):
                is_near = node_of_rank_R[rank] == node_of_rank_R[home]
                score_R[rank] = is_near * (K + 1) * R + (R - 1 - (rank - home) % R)
            for choice in range(K):
                expert = expert_TK[token, choice]
                if expert >= 0 and slot_TK[token, choice] < 0:
                    score_R[rank_of_slot_P[dispatch_slot_RE[home, expert]]] += R
                    for rank in range(R):
                        score_R[rank] += 2 * (K + 1) * R * (slot_on_rank_RE[rank, expert] >= 0)
            best = score_R.argmax()
            for choice in range(K):
                expert = expert_TK[token, choice]
                if expert >= 0 and slot_TK[token, choice] < 0:
                    slot_TK[token, choice] = slot_on_rank_RE[best, expert]
                    left -= slot_TK[token, choice] >= 0


@compiled
def _number_rows(
    pair_slot_TK: NDArray[np.int32], weight_TK: NDArray[np.float32], rank_of_slot_P: NDArray[np.int32],
    rows_2TK: NDArray[np.int32], offsets_2R: NDArray[np.int32], row_slots_NK: NDArray[np.int32],
    row_weights_NK: NDArray[np.float32],
) -> None:  # fmt: skip
    """rows: `row_of_pair` and `token_rows`; offsets: `row_offsets` and `pair_offsets`."""
    (T, K), R = pair_slot_TK.shape, offsets_2R.shape[1] - 1
    last_token_R = np.full(R, -1, dtype=np.int64)
    offsets_2R[:] = 0
    for token in range(T):
        for choice in range(K):
            slot = pair_slot_TK[token, choice]
            if slot >= 0:
                rank = rank_of_slot_P[slot]
                offsets_2R[1, rank + 1] += 1
                if last_token_R[rank] != token:
                    last_token_R[rank] = token
                    offsets_2R[0, rank + 1] += 1
    for rank in range(R):
        offsets_2R[:, rank + 1] += offsets_2R[:, rank]
    row_slots_NK[:] = -1
    row_weights_NK[:] = 0
    # The row that a rank was given last, and how many of its places are taken.
    row_R = offsets_2R[0, :R] - np.int32(1)
    taken_R = np.zeros(R, dtype=np.int64)
    last_token_R[:] = -1
    for token in range(T):
        for choice in range(K):
            slot = pair_slot_TK[token, choice]
            rows_2TK[0, token, choice] = -1
            rows_2TK[1, token, choice] = -1
            if slot >= 0:
                rank = rank_of_slot_P[slot]
                if last_token_R[rank] != token:
                    last_token_R[rank] = token
                    row_R[rank] += 1
                    taken_R[rank] = 0
                    rows_2TK[1, token, choice] = row_R[rank]
                rows_2TK[0, token, choice] = row_R[rank]
                row_slots_NK[row_R[rank], taken_R[rank]] = slot
                row_weights_NK[row_R[rank], taken_R[rank]] = weight_TK[token, choice]
                taken_R[rank] += 1


@compiled
def _group(
    row_slots_NK: NDArray[np.int32], first_slot: int, alignment: int, positions_NK: NDArray[np.int32],
    offsets_S: NDArray[np.int32], counts_S: NDArray[np.int32],
) -> None:  # fmt: skip
    """offsets: [S + 1]."""
    counts_S[:] = 0
    for row in range(row_slots_NK.shape[0]):
        for place in range(row_slots_NK.shape[1]):
            if row_slots_NK[row, place] >= 0:
                counts_S[row_slots_NK[row, place] - first_slot] += 1
    offsets_S[0] = 0
    for slot in range(len(counts_S)):
        offsets_S[slot + 1] = offsets_S[slot] + (counts_S[slot] + alignment - 1) // alignment * alignment
    next_S = offsets_S.copy()
    for row in range(row_slots_NK.shape[0]):
        for place in range(row_slots_NK.shape[1]):
            slot = row_slots_NK[row, place] - first_slot
            positions_NK[row, place] = -1
            if row_slots_NK[row, place] >= 0:
                positions_NK[row, place] = next_S[slot]
                next_S[slot] += 1
