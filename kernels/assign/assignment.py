"""What `assign` hands on: where each (token, expert) pair runs and the rows that carry tokens there."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """T tokens, K experts each, R ranks; N = T * min(K, R) rows at most, so that no size depends on the routing.

    A row is one (token, rank) pair: the token's hidden state once, for all of its experts that run on that rank. Rows
    are numbered by rank, then token. All tensors are on the device of the inputs.

    pair_slot: int32 [T, K], the slot that serves the pair, -1 where the pair is dropped.
    row_of_pair: int32 [T, K], the row that carries it, -1 where it is dropped.
    token_rows: int32 [T, K], a token's rows, each named once, at the first pair that it carries; -1 elsewhere.
    row_offsets: int32 [R + 1], rank r receives the rows `row_offsets[r] : row_offsets[r + 1]`.
    pair_offsets: int32 [R + 1], the same for the pairs in those rows.
    row_slots: int32 [N, K], the slots that a row is for, in the order of the token's pairs, then -1.
    row_weights: float32 [N, K], the routing weights beside them, then 0.
    """

    pair_slot: torch.Tensor
    row_of_pair: torch.Tensor
    token_rows: torch.Tensor
    row_offsets: torch.Tensor
    pair_offsets: torch.Tensor
    row_slots: torch.Tensor
    row_weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class SlotGroups:
    """Rows expanded to one copy per pair, grouped by slot. N rows, K pairs at most in each, S slots.

    positions: int32 [N, K], where each pair's copy goes in slot-major order, -1 where there is no pair. Within a slot
    copies are in row order. slot_offsets: int32 [S + 1], slot s owns `slot_offsets[s] : slot_offsets[s + 1]`, the size
    of which is `slot_counts[s]` (int32 [S]), rounded up to the alignment that was asked for.
    """

    positions: torch.Tensor
    slot_offsets: torch.Tensor
    slot_counts: torch.Tensor
