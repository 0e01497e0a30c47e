"""The device functions that choose the slot of each pair of a block of tokens.

Shape suffixes: T tokens of the block, K places for pairs of a token (`TOP_K` of them used), R places for ranks. Tokens
are the last dimension, so that a thread holds all that belongs to a token, and sums over pairs and ranks stay in it.
"""

from specmoe.kernels.launch.compiler import kernel, tl

# The ranks that one word of `rank_bits` speaks of.
WORD_RANKS: tl.constexpr = tl.constexpr(32)


@kernel
def choose_slots(
    chosen: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor, rank_bits: tl.tensor,
    rank_of_slot: tl.tensor, node_of_rank: tl.tensor, token_T: tl.tensor, end: tl.tensor, num_experts: tl.tensor,
    num_ranks: tl.tensor, num_slots: tl.tensor, TOP_K: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    CHOICE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """int32 [K, T]: the slot of each pair, -1 outside `TOP_K` and `end`, and where the pair's id is out of range.

    chosen holds experts; with `CHOICE` "given" it holds the slots themselves.
    """
    choice_K = tl.arange(0, K)
    inside_KT = (token_T < end)[None, :] & (choice_K < TOP_K)[:, None]
    id_KT = tl.load(chosen + token_T[None, :] * TOP_K + choice_K[:, None], mask=inside_KT, other=-1)
    # Out of range is refused on the host where values are checked; here it must only not read another's memory.
    if CHOICE == "given":
        slot_KT = tl.where((id_KT >= 0) & (id_KT < num_slots), id_KT, -1).to(tl.int32)
    else:
        valid_KT = inside_KT & (id_KT >= 0) & (id_KT < num_experts)
        id_KT = id_KT.to(tl.int32)
        home_T = tl.load(home_rank + token_T, mask=token_T < end, other=0)
        valid_KT = valid_KT & ((home_T >= 0) & (home_T < num_ranks))[None, :]
        entry_KT = home_T[None, :] * num_experts + id_KT
        named_KT = tl.load(dispatch_slot + entry_KT, mask=valid_KT, other=-1)
        if CHOICE == "static":
            slot_KT = named_KT
        else:
            slot_KT = _cover(
                id_KT, valid_KT, home_T, named_KT, tl.load(slot_on_rank + entry_KT, mask=valid_KT, other=-1),
                slot_on_rank, rank_bits, rank_of_slot, node_of_rank, num_experts, num_ranks, TOP_K, R,
            )  # fmt: skip
    return slot_KT


@kernel
def _cover(
    expert_KT: tl.tensor, valid_KT: tl.tensor, home_T: tl.tensor, named_KT: tl.tensor, slot_KT: tl.tensor,
    slot_on_rank: tl.tensor, rank_bits: tl.tensor, rank_of_slot: tl.tensor, node_of_rank: tl.tensor,
    num_experts: tl.tensor, num_ranks: tl.tensor, TOP_K: tl.constexpr, R: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    rank_R = tl.arange(0, R)
    exists_RT = (rank_R < num_ranks)[:, None]
    named_rank_KT = tl.load(rank_of_slot + named_KT, mask=valid_KT, other=-1)
    node_R = tl.load(node_of_rank + rank_R, mask=rank_R < num_ranks, other=-1)
    home_node_T = tl.load(node_of_rank + home_T, mask=(home_T >= 0) & (home_T < num_ranks), other=-2)
    same_node_RT = (node_R[:, None] == home_node_T[None, :]).to(tl.int32)
    ahead_RT = rank_R[:, None] - home_T[None, :]
    near_RT = num_ranks - 1 - tl.where(ahead_RT < 0, ahead_RT + num_ranks, ahead_RT)
    unserved_KT = valid_KT & (slot_KT < 0)
    rounds = 0
    # Every round serves at least one pair of each token that has one left.
    while (tl.max(tl.max(unserved_KT.to(tl.int32), axis=0), axis=0) > 0) & (rounds < TOP_K):
        held_RT = tl.sum(_held_by(rank_bits, expert_KT, unserved_KT, rank_R, num_ranks, R), axis=0)
        open_rank_KT = tl.where(unserved_KT, named_rank_KT, -1)
        named_RT = tl.sum((open_rank_KT[:, None, :] == rank_R[None, :, None]).to(tl.int32), axis=0)
        # The tie-breaks as digits of one number, the first rule first; the last, nearness, differs between all ranks.
        score_RT = ((held_RT * 2 + same_node_RT) * (TOP_K + 1) + named_RT) * R + near_RT
        best_score_T = tl.max(tl.where(exists_RT, score_RT, -1), axis=0)
        best_T = home_T + num_ranks - 1 - best_score_T % R
        best_T = tl.where(best_T >= num_ranks, best_T - num_ranks, best_T)
        on_best_KT = tl.load(slot_on_rank + best_T[None, :] * num_experts + expert_KT, mask=unserved_KT, other=-1)
        slot_KT = tl.where(unserved_KT, on_best_KT, slot_KT)
        unserved_KT = unserved_KT & (slot_KT < 0)
        rounds += 1
    return slot_KT


@kernel
def _held_by(
    rank_bits: tl.tensor, expert_KT: tl.tensor, asked_KT: tl.tensor, rank_R: tl.tensor, num_ranks: tl.tensor,
    R: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """int32 [K, R, T]: 1 where the rank holds the pair's expert; 0 for pairs that are not asked for."""
    if R <= WORD_RANKS:
        word_KT = tl.load(rank_bits + expert_KT, mask=asked_KT, other=0)
        bits_KRT = word_KT[:, None, :] >> rank_R[None, :, None]
    else:
        words = (num_ranks + WORD_RANKS - 1) // WORD_RANKS
        word_KRT = tl.load(
            rank_bits + expert_KT[:, None, :] * words + (rank_R // WORD_RANKS)[None, :, None],
            mask=asked_KT[:, None, :] & (rank_R < num_ranks)[None, :, None],
            other=0,
        )
        bits_KRT = word_KRT >> (rank_R % WORD_RANKS)[None, :, None]
    return bits_KRT & 1
