"""The device functions that count the rows and pairs of each rank, and number them.

Shape suffixes: T tokens of a block, K places for pairs of a token (`TOP_K` of them used), R places for ranks.
"""

from specmoe.kernels.assign.choose import choose_slots
from specmoe.kernels.launch.compiler import kernel, tl

FILL_BLOCK: tl.constexpr = tl.constexpr(1024)


@kernel
def fill_rows(row_slots: tl.tensor, row_weights: tl.tensor, first: tl.tensor, end: tl.tensor) -> None:
    """Empty the entries `first : end` of `row_slots` and `row_weights`."""
    for start in range(first, end, FILL_BLOCK):
        entry = start + tl.arange(0, FILL_BLOCK)
        inside = entry < end
        tl.store(row_slots + entry, tl.full([FILL_BLOCK], -1, tl.int32), mask=inside)
        tl.store(row_weights + entry, tl.full([FILL_BLOCK], 0.0, tl.float32), mask=inside)


@kernel
def ranks_of(rank_of_slot: tl.tensor, slot_TK: tl.tensor) -> tl.tensor:
    """int32 [T, K]: the rank of each slot, -1 where there is none."""
    return tl.load(rank_of_slot + slot_TK, mask=slot_TK >= 0, other=-1)


@kernel
def count_tokens(
    chosen: tl.tensor,
    home_rank: tl.tensor,
    dispatch_slot: tl.tensor,
    slot_on_rank: tl.tensor,
    rank_of_slot: tl.tensor,
    node_of_rank: tl.tensor,
    pair_slot: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    num_experts: tl.tensor,
    num_ranks: tl.tensor,
    TOP_K: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    CHOICE: tl.constexpr,
) -> tl.tensor:
    """int32 [2, R] as a pair: the rows and the pairs that the tokens `first : end` send to each rank.

    Their slots are written to `pair_slot`.
    """
    rows_R = tl.zeros([R], dtype=tl.int32)
    pairs_R = tl.zeros([R], dtype=tl.int32)
    choice_K = tl.arange(0, K)
    for start in range(first, end, T):
        token_T = start + tl.arange(0, T)
        slot_TK = choose_slots(
            chosen, home_rank, dispatch_slot, slot_on_rank, rank_of_slot, node_of_rank, token_T, end,
            num_experts, num_ranks, TOP_K, K, R, CHOICE,
        )  # fmt: skip
        inside_TK = (token_T < end)[:, None] & (choice_K < TOP_K)[None, :]
        tl.store(pair_slot + token_T[:, None] * TOP_K + choice_K[None, :], slot_TK, mask=inside_TK)
        rank_TK = ranks_of(rank_of_slot, slot_TK)
        pairs_TR = tl.sum((rank_TK[:, :, None] == tl.arange(0, R)[None, None, :]).to(tl.int32), axis=1)
        rows_R += tl.sum((pairs_TR > 0).to(tl.int32), axis=0)
        pairs_R += tl.sum(pairs_TR, axis=0)
    return rows_R, pairs_R


@kernel
def store_offsets(offsets: tl.tensor, count_R: tl.tensor, num_ranks: tl.tensor, R: tl.constexpr) -> None:
    """Write 0 and the running sums of `count_R`, `num_ranks + 1` of them."""
    rank_R = tl.arange(0, R)
    tl.store(offsets + rank_R, tl.cumsum(count_R, axis=0) - count_R, mask=rank_R < num_ranks)
    tl.store(offsets + num_ranks, tl.sum(count_R, axis=0))


@kernel
def number_rows(
    pair_slot: tl.tensor,
    weights: tl.tensor,
    rank_of_slot: tl.tensor,
    row_of_pair: tl.tensor,
    token_rows: tl.tensor,
    row_slots: tl.tensor,
    row_weights: tl.tensor,
    next_R: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    TOP_K: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
) -> None:
    """Number the rows of the tokens `first : end`, from `next_R` on each rank, and write what they carry."""
    choice_K = tl.arange(0, K)
    for start in range(first, end, T):
        token_T = start + tl.arange(0, T)
        pair_TK = token_T[:, None] * TOP_K + choice_K[None, :]
        inside_TK = (token_T < end)[:, None] & (choice_K < TOP_K)[None, :]
        slot_TK = tl.load(pair_slot + pair_TK, mask=inside_TK, other=-1)
        rank_TK = ranks_of(rank_of_slot, slot_TK)
        kept_TK = rank_TK >= 0
        on_TKR = rank_TK[:, :, None] == tl.arange(0, R)[None, None, :]
        goes_TR = (tl.sum(on_TKR.to(tl.int32), axis=1) > 0).to(tl.int32)
        row_TR = next_R[None, :] + tl.cumsum(goes_TR, axis=0) - goes_TR
        next_R += tl.sum(goes_TR, axis=0)
        row_TK = tl.where(kept_TK, tl.sum(tl.where(on_TKR, row_TR[:, None, :], 0), axis=2), -1)
        same_TKK = rank_TK[:, :, None] == rank_TK[:, None, :]
        earlier_KK = choice_K[None, :] < choice_K[:, None]
        nth_TK = tl.sum((same_TKK & earlier_KK[None, :, :]).to(tl.int32), axis=2)
        tl.store(row_of_pair + pair_TK, row_TK, mask=inside_TK)
        tl.store(token_rows + pair_TK, tl.where(nth_TK == 0, row_TK, -1), mask=inside_TK)
        place_TK = row_TK.to(tl.int64) * TOP_K + nth_TK
        weight_TK = tl.load(weights + pair_TK, mask=kept_TK, other=0.0).to(tl.float32)
        tl.store(row_slots + place_TK, slot_TK, mask=kept_TK)
        tl.store(row_weights + place_TK, weight_TK, mask=kept_TK)
