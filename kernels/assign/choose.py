"""The device functions that choose the slot of each pair of a block of tokens.

Shape suffixes: T tokens of the block, K places for pairs of a token (`TOP_K` of them used), R places for ranks.
"""

from specmoe.kernels.launch.compiler import kernel, tl


@kernel
def choose_slots(
    chosen: tl.tensor,
    home_rank: tl.tensor,
    dispatch_slot: tl.tensor,
    slot_on_rank: tl.tensor,
    rank_of_slot: tl.tensor,
    node_of_rank: tl.tensor,
    token_T: tl.tensor,
    end: tl.tensor,
    num_experts: tl.tensor,
    num_ranks: tl.tensor,
    TOP_K: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    CHOICE: tl.constexpr,
) -> tl.tensor:
    """int32 [T, K]: the slot of each pair, -1 outside `TOP_K` and `end`, and where the pair's id is out of range.

    chosen holds experts; with `CHOICE` "given" it holds the slots themselves.
    """
    choice_K = tl.arange(0, K)
    inside_TK = (token_T < end)[:, None] & (choice_K < TOP_K)[None, :]
    id_TK = tl.load(chosen + token_T[:, None] * TOP_K + choice_K[None, :], mask=inside_TK, other=-1)
    if CHOICE == "given":
        slot_TK = id_TK.to(tl.int32)
    else:
        # Out of range is refused on the host in debug mode; here it must only not read another's memory.
        valid_TK = inside_TK & (id_TK >= 0) & (id_TK < num_experts)
        id_TK = id_TK.to(tl.int32)
        home_T = tl.load(home_rank + token_T, mask=token_T < end, other=0)
        valid_TK = valid_TK & ((home_T >= 0) & (home_T < num_ranks))[:, None]
        entry_TK = home_T[:, None] * num_experts + id_TK
        named_TK = tl.load(dispatch_slot + entry_TK, mask=valid_TK, other=-1)
        if CHOICE == "static":
            slot_TK = named_TK
        else:
            slot_TK = _cover(
                id_TK, valid_TK, home_T, named_TK, tl.load(slot_on_rank + entry_TK, mask=valid_TK, other=-1),
                slot_on_rank, rank_of_slot, node_of_rank, num_experts, num_ranks, TOP_K, R,
            )  # fmt: skip
    return slot_TK


@kernel
def _cover(
    expert_TK: tl.tensor,
    valid_TK: tl.tensor,
    home_T: tl.tensor,
    named_TK: tl.tensor,
    slot_TK: tl.tensor,
    slot_on_rank: tl.tensor,
    rank_of_slot: tl.tensor,
    node_of_rank: tl.tensor,
    num_experts: tl.tensor,
    num_ranks: tl.tensor,
    TOP_K: tl.constexpr,
    R: tl.constexpr,
) -> tl.tensor:
    rank_R = tl.arange(0, R)
    exists_R = rank_R < num_ranks
    holds_TKR = (
        tl.load(
            slot_on_rank + rank_R[None, None, :] * num_experts + expert_TK[:, :, None],
            mask=valid_TK[:, :, None] & exists_R[None, None, :],
            other=-1,
        )
        >= 0
    )
    named_rank_TK = tl.load(rank_of_slot + named_TK, mask=valid_TK, other=-1)
    names_TKR = named_rank_TK[:, :, None] == rank_R[None, None, :]
    node_R = tl.load(node_of_rank + rank_R, mask=exists_R, other=-1)
    home_node_T = tl.load(node_of_rank + home_T, mask=(home_T >= 0) & (home_T < num_ranks), other=-2)
    near_TR = num_ranks - 1 - (rank_R[None, :] - home_T[:, None] + num_ranks) % num_ranks
    same_node_TR = (node_R[None, :] == home_node_T[:, None]).to(tl.int32)
    unserved_TK = valid_TK & (slot_TK < 0)
    rounds = 0
    # Every round serves at least one pair of each token that has one left.
    while (tl.max(tl.max(unserved_TK.to(tl.int32), axis=1), axis=0) > 0) & (rounds < TOP_K):
        held_TR = tl.sum((holds_TKR & unserved_TK[:, :, None]).to(tl.int32), axis=1)
        named_TR = tl.sum((names_TKR & unserved_TK[:, :, None]).to(tl.int32), axis=1)
        # The tie-breaks as digits of one number, the first rule first; the last, nearness, differs between all ranks.
        score_TR = ((held_TR * 2 + same_node_TR) * (TOP_K + 1) + named_TR) * num_ranks + near_TR
        best_score_T = tl.max(tl.where(exists_R[None, :], score_TR, -1), axis=1)
        best_T = (home_T + num_ranks - 1 - best_score_T % num_ranks) % num_ranks
        on_best_TK = tl.load(slot_on_rank + best_T[:, None] * num_experts + expert_TK, mask=unserved_TK, other=-1)
        slot_TK = tl.where(unserved_TK, on_best_TK, slot_TK)
        unserved_TK = unserved_TK & (slot_TK < 0)
        rounds += 1
    return slot_TK
