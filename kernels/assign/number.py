"""The device functions that count the rows and pairs of each rank, and number them.

Shape suffixes: T tokens of a block, K places for pairs of a token (`TOP_K` of them used), R places for ranks.
"""

from specmoe.kernels.assign.choose import choose_slots
from specmoe.kernels.launch.compiler import kernel, tl

FILL_BLOCK: tl.constexpr = tl.constexpr(2048)


@kernel
def fill_rows(row_slots: tl.tensor, row_weights: tl.tensor, first: tl.tensor, end: tl.tensor) -> None:
    """Empty the entries `first : end` of `row_slots` and `row_weights`."""
    for start in range(first, end, FILL_BLOCK):
        entry = start + tl.arange(0, FILL_BLOCK)
        inside = entry < end
        tl.store(row_slots + entry, tl.full([FILL_BLOCK], -1, tl.int32), mask=inside)
        tl.store(row_weights + entry, tl.full([FILL_BLOCK], 0.0, tl.float32), mask=inside)


@kernel
def ranks_of(rank_of_slot: tl.tensor, slot_KT: tl.tensor) -> tl.tensor:
    """int32 [K, T]: the rank of each slot, -1 where there is none."""
    return tl.load(rank_of_slot + slot_KT, mask=slot_KT >= 0, other=-1)


@kernel
def pairs_on_ranks(rank_KT: tl.tensor, R: tl.constexpr) -> tl.tensor:
    """int32 [R, T]: how many of each token's pairs go to each rank."""
    return tl.sum((rank_KT[:, None, :] == tl.arange(0, R)[None, :, None]).to(tl.int32), axis=0)


@kernel
def store_slots(
    pair_slot: tl.tensor, slot_KT: tl.tensor, token_T: tl.tensor, end: tl.tensor, TOP_K: tl.constexpr, K: tl.constexpr
) -> None:
    """Write the slots of the tokens before `end` to `pair_slot`."""
    choice_K = tl.arange(0, K)
    inside_KT = (token_T < end)[None, :] & (choice_K < TOP_K)[:, None]
    tl.store(pair_slot + token_T[None, :] * TOP_K + choice_K[:, None], slot_KT, mask=inside_KT)


@kernel
def count_tokens(
    chosen: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor, rank_bits: tl.tensor,
    rank_of_slot: tl.tensor, node_of_rank: tl.tensor, pair_slot: tl.tensor, first: tl.tensor, end: tl.tensor,
    num_experts: tl.tensor, num_ranks: tl.tensor, num_slots: tl.tensor, TOP_K: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, R: tl.constexpr, CHOICE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """int32 [R] twice: the rows and the pairs that the tokens `first : end` send to each rank.

    Their slots are written to `pair_slot`.
    """
    rows_R = tl.zeros([R], dtype=tl.int32)
    pairs_R = tl.zeros([R], dtype=tl.int32)
    for start in range(first, end, T):
        token_T = start + tl.arange(0, T)
        slot_KT = choose_slots(
            chosen, home_rank, dispatch_slot, slot_on_rank, rank_bits, rank_of_slot, node_of_rank, token_T, end,
            num_experts, num_ranks, num_slots, TOP_K, K, R, CHOICE,
        )  # fmt: skip
        store_slots(pair_slot, slot_KT, token_T, end, TOP_K, K)
        pairs_RT = pairs_on_ranks(ranks_of(rank_of_slot, slot_KT), R)
        rows_R += tl.sum((pairs_RT > 0).to(tl.int32), axis=1)
        pairs_R += tl.sum(pairs_RT, axis=1)
    return rows_R, pairs_R


@kernel
def store_offsets(offsets: tl.tensor, count_R: tl.tensor, num_ranks: tl.tensor, R: tl.constexpr) -> None:
    """Write 0 and the running sums of `count_R`, `num_ranks + 1` of them."""
    rank_R = tl.arange(0, R)
    tl.store(offsets + rank_R, tl.cumsum(count_R, axis=0) - count_R, mask=rank_R < num_ranks)
    tl.store(offsets + num_ranks, tl.sum(count_R, axis=0))


@kernel
def number_tokens(
    slot_KT: tl.tensor, rank_KT: tl.tensor, next_R: tl.tensor, weights: tl.tensor, row_of_pair: tl.tensor,
    token_rows: tl.tensor, row_slots: tl.tensor, row_weights: tl.tensor, token_T: tl.tensor, end: tl.tensor,
    TOP_K: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Number a block's rows, from `next_R` on each rank, and write what they carry; the numbers that come next."""
    choice_K = tl.arange(0, K)
    pair_KT = token_T[None, :] * TOP_K + choice_K[:, None]
    inside_KT = (token_T < end)[None, :] & (choice_K < TOP_K)[:, None]
    kept_KT = rank_KT >= 0
    # Asked for before it is needed, so that the loads are on their way meanwhile.
    weight_KT = tl.load(weights + pair_KT, mask=inside_KT, other=0.0).to(tl.float32)
    goes_RT = (pairs_on_ranks(rank_KT, R) > 0).to(tl.int32)
    row_RT = next_R[:, None] + tl.cumsum(goes_RT, axis=1) - goes_RT
    on_KRT = rank_KT[:, None, :] == tl.arange(0, R)[None, :, None]
    row_KT = tl.where(kept_KT, tl.sum(tl.where(on_KRT, row_RT[None, :, :], 0), axis=1), -1)
    # The second dimension is that of a token's other pairs.
    same_KKT = rank_KT[:, None, :] == rank_KT[None, :, :]
    earlier_KK = choice_K[None, :] < choice_K[:, None]
    nth_KT = tl.sum((same_KKT & earlier_KK[:, :, None]).to(tl.int32), axis=1)
    tl.store(row_of_pair + pair_KT, row_KT, mask=inside_KT)
    tl.store(token_rows + pair_KT, tl.where(nth_KT == 0, row_KT, -1), mask=inside_KT)
    place_KT = row_KT.to(tl.int64) * TOP_K + nth_KT
    tl.store(row_slots + place_KT, slot_KT, mask=kept_KT)
    tl.store(row_weights + place_KT, weight_KT, mask=kept_KT)
    return next_R + tl.sum(goes_RT, axis=1)


@kernel
def number_stretch(
    pair_slot: tl.tensor, rank_of_slot: tl.tensor, next_R: tl.tensor, weights: tl.tensor, row_of_pair: tl.tensor,
    token_rows: tl.tensor, row_slots: tl.tensor, row_weights: tl.tensor, first: tl.tensor, end: tl.tensor,
    TOP_K: tl.constexpr, T: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
) -> None:  # fmt: skip
    """`number_tokens` of the tokens `first : end`, block by block, their slots read from `pair_slot`."""
    choice_K = tl.arange(0, K)
    for start in range(first, end, T):
        token_T = start + tl.arange(0, T)
        inside_KT = (token_T < end)[None, :] & (choice_K < TOP_K)[:, None]
        slot_KT = tl.load(pair_slot + token_T[None, :] * TOP_K + choice_K[:, None], mask=inside_KT, other=-1)
        next_R = number_tokens(
            slot_KT, ranks_of(rank_of_slot, slot_KT), next_R, weights, row_of_pair, token_rows, row_slots, row_weights,
            token_T, end, TOP_K, K, R,
        )  # fmt: skip
