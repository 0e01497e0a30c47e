"""Assign in Triton: count the rows of each rank, then number them; one launch for a decode step, two for more.

Both count and number in token order, so the result is the reference's, bit for bit, every time. Nothing is sorted, and
no atomic operation takes part.
"""

import torch

from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.assign.choose import choose_slots
from specmoe.kernels.assign.number import (
    count_tokens,
    fill_rows,
    number_stretch,
    number_tokens,
    pairs_on_ranks,
    ranks_of,
    store_offsets,
    store_slots,
)
from specmoe.kernels.assign.token_block import TokenBlock
from specmoe.kernels.launch.compiler import ceil_div, kernel, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.launch.operator import operator
from specmoe.kernels.routing_tables import RoutingTables

# Up to so many pairs one program does it all.
ONE_LAUNCH_PAIRS = 2048
# Each program of the second launch reads every program's counts, so their number is bounded.
MAX_PROGRAMS = 1024
# So many of the counts it reads at once.
COUNTS_AT_ONCE = 2048


def assign_fused(
    chosen: torch.Tensor, top_k_weights: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables, choice: str
) -> Assignment:
    """As `assign`, for checked arguments.

    choice: "static" or "cover", and then `chosen` holds experts; or "given", and then it holds each pair's slot (-1
    for a dropped pair).
    """
    names = ("pair_slot", "row_of_pair", "token_rows", "row_offsets", "pair_offsets", "row_slots", "row_weights")
    tensors: list[torch.Tensor] = assign_op(
        chosen, top_k_weights, home_rank, tables.dispatch_slot, tables.slot_on_rank, tables.rank_bits,
        tables.rank_of_slot, tables.node_of_rank, choice,
    )  # fmt: skip
    return Assignment(**dict(zip(names, tensors, strict=True)))


def _new_outputs(chosen: torch.Tensor, dispatch_slot: torch.Tensor) -> list[torch.Tensor]:
    (num_tokens, top_k), num_ranks = chosen.shape, dispatch_slot.shape[0]
    num_rows = num_tokens * min(top_k, num_ranks)
    pairs, offsets, rows = (num_tokens, top_k), (num_ranks + 1,), (num_rows, top_k)
    integers = [chosen.new_empty(size, dtype=torch.int32) for size in (pairs, pairs, pairs, offsets, offsets, rows)]
    return [*integers, chosen.new_empty(rows, dtype=torch.float32)]


def _fake(
    chosen: torch.Tensor,
    top_k_weights: torch.Tensor,
    home_rank: torch.Tensor,
    dispatch_slot: torch.Tensor,
    *_: object,
) -> list[torch.Tensor]:
    return _new_outputs(chosen, dispatch_slot)


@operator("assign", _fake)
def assign_op(
    chosen: torch.Tensor,
    top_k_weights: torch.Tensor,
    home_rank: torch.Tensor,
    dispatch_slot: torch.Tensor,
    slot_on_rank: torch.Tensor,
    rank_bits: torch.Tensor,
    rank_of_slot: torch.Tensor,
    node_of_rank: torch.Tensor,
    choice: str,
) -> list[torch.Tensor]:
    """The fields of `Assignment`, in their order."""
    outputs = _new_outputs(chosen, dispatch_slot)
    pair_slot, row_of_pair, token_rows, row_offsets, pair_offsets, row_slots, row_weights = outputs
    (num_tokens, top_k), (num_ranks, num_experts) = chosen.shape, dispatch_slot.shape
    tables = (home_rank, dispatch_slot, slot_on_rank, rank_bits, rank_of_slot, node_of_rank)
    rows = (row_of_pair, token_rows, row_slots, row_weights)
    sizes = (num_tokens, num_experts, num_ranks, rank_of_slot.shape[0])
    max_rows = min(top_k, num_ranks)
    with device_of(chosen):
        if num_tokens * top_k <= ONE_LAUNCH_PAIRS:
            block = TokenBlock.of_one_program(top_k, num_ranks, num_tokens)
            _assign_in_one[(1,)](
                chosen, top_k_weights, *tables, pair_slot, row_offsets, pair_offsets, *rows, *sizes,
                ONE_BLOCK=num_tokens <= block.tokens, MAX_ROWS=max_rows, CHOICE=choice, num_warps=block.warps,
                **block.constants,
            )  # fmt: skip
            return outputs
        block = TokenBlock.of_many_programs(top_k, num_ranks)
        tokens_each = block.tokens * ceil_div(num_tokens, block.tokens * MAX_PROGRAMS)
        programs = ceil_div(num_tokens, tokens_each)
        counts = chosen.new_empty((programs, 2, num_ranks), dtype=torch.int32)
        _count[(programs,)](
            chosen, *tables, pair_slot, row_slots, row_weights, counts, tokens_each, *sizes,
            MAX_ROWS=max_rows, CHOICE=choice, num_warps=block.warps, **block.constants,
        )  # fmt: skip
        _number[(programs,)](
            top_k_weights, rank_of_slot, pair_slot, counts, row_offsets, pair_offsets, *rows, tokens_each, programs,
            num_tokens, num_ranks, PROGRAMS=max(COUNTS_AT_ONCE // block.ranks, 1), num_warps=block.warps,
            **block.constants,
        )  # fmt: skip
    return outputs


@kernel
def _assign_in_one(
    chosen: tl.tensor, weights: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor,
    rank_bits: tl.tensor, rank_of_slot: tl.tensor, node_of_rank: tl.tensor, pair_slot: tl.tensor,
    row_offsets: tl.tensor, pair_offsets: tl.tensor, row_of_pair: tl.tensor, token_rows: tl.tensor,
    row_slots: tl.tensor, row_weights: tl.tensor, num_tokens: tl.tensor, num_experts: tl.tensor, num_ranks: tl.tensor,
    num_slots: tl.tensor, ONE_BLOCK: tl.constexpr, TOP_K: tl.constexpr, MAX_ROWS: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, R: tl.constexpr, CHOICE: tl.constexpr,
) -> None:  # fmt: skip
    fill_rows(row_slots, row_weights, 0, num_tokens * MAX_ROWS * TOP_K)
    if ONE_BLOCK:
        # Nothing is read back: the block's slots stay in registers.
        token_T = tl.arange(0, T)
        slot_KT = choose_slots(
            chosen, home_rank, dispatch_slot, slot_on_rank, rank_bits, rank_of_slot, node_of_rank, token_T, num_tokens,
            num_experts, num_ranks, num_slots, TOP_K, K, R, CHOICE,
        )  # fmt: skip
        store_slots(pair_slot, slot_KT, token_T, num_tokens, TOP_K, K)
        rank_KT = ranks_of(rank_of_slot, slot_KT)
        pairs_RT = pairs_on_ranks(rank_KT, R)
        rows_R, pairs_R = tl.sum((pairs_RT > 0).to(tl.int32), axis=1), tl.sum(pairs_RT, axis=1)
    else:
        rows_R, pairs_R = count_tokens(
            chosen, home_rank, dispatch_slot, slot_on_rank, rank_bits, rank_of_slot, node_of_rank, pair_slot, 0,
            num_tokens, num_experts, num_ranks, num_slots, TOP_K, T, K, R, CHOICE,
        )  # fmt: skip
    store_offsets(row_offsets, rows_R, num_ranks, R)
    store_offsets(pair_offsets, pairs_R, num_ranks, R)
    next_R = tl.cumsum(rows_R, axis=0) - rows_R
    # What other threads of the program have written above is read, or written over, below.
    tl.debug_barrier()
    if ONE_BLOCK:
        number_tokens(
            slot_KT, rank_KT, next_R, weights, row_of_pair, token_rows, row_slots, row_weights, token_T, num_tokens,
            TOP_K, K, R,
        )  # fmt: skip
    else:
        number_stretch(
            pair_slot, rank_of_slot, next_R, weights, row_of_pair, token_rows, row_slots, row_weights, 0, num_tokens,
            TOP_K, T, K, R,
        )  # fmt: skip


@kernel
def _count(
    chosen: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor, rank_bits: tl.tensor,
    rank_of_slot: tl.tensor, node_of_rank: tl.tensor, pair_slot: tl.tensor, row_slots: tl.tensor,
    row_weights: tl.tensor, counts: tl.tensor, tokens_each: tl.tensor, num_tokens: tl.tensor, num_experts: tl.tensor,
    num_ranks: tl.tensor, num_slots: tl.tensor, TOP_K: tl.constexpr, MAX_ROWS: tl.constexpr, T: tl.constexpr,
    K: tl.constexpr, R: tl.constexpr, CHOICE: tl.constexpr,
) -> None:  # fmt: skip
    first = tl.program_id(0) * tokens_each
    end = tl.minimum(first + tokens_each, num_tokens)
    entries_each_token = tl.full([], MAX_ROWS * TOP_K, tl.int64)
    fill_rows(row_slots, row_weights, first * entries_each_token, end * entries_each_token)
    rows_R, pairs_R = count_tokens(
        chosen, home_rank, dispatch_slot, slot_on_rank, rank_bits, rank_of_slot, node_of_rank, pair_slot, first, end,
        num_experts, num_ranks, num_slots, TOP_K, T, K, R, CHOICE,
    )  # fmt: skip
    rank_R = tl.arange(0, R)
    own = counts + tl.program_id(0) * 2 * num_ranks + rank_R
    tl.store(own, rows_R, mask=rank_R < num_ranks)
    tl.store(own + num_ranks, pairs_R, mask=rank_R < num_ranks)


@kernel
def _number(
    weights: tl.tensor, rank_of_slot: tl.tensor, pair_slot: tl.tensor, counts: tl.tensor, row_offsets: tl.tensor,
    pair_offsets: tl.tensor, row_of_pair: tl.tensor, token_rows: tl.tensor, row_slots: tl.tensor,
    row_weights: tl.tensor, tokens_each: tl.tensor, programs: tl.tensor, num_tokens: tl.tensor, num_ranks: tl.tensor,
    TOP_K: tl.constexpr, T: tl.constexpr, K: tl.constexpr, R: tl.constexpr, PROGRAMS: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0)
    rank_R = tl.arange(0, R)
    rows_R = tl.zeros([R], dtype=tl.int32)
    pairs_R = tl.zeros([R], dtype=tl.int32)
    earlier_R = tl.zeros([R], dtype=tl.int32)
    for start in range(0, programs, PROGRAMS):
        other = start + tl.arange(0, PROGRAMS)
        inside = (other < programs)[:, None] & (rank_R < num_ranks)[None, :]
        entry = counts + other[:, None] * 2 * num_ranks + rank_R[None, :]
        of_other = tl.load(entry, mask=inside, other=0)
        rows_R += tl.sum(of_other, axis=0)
        earlier_R += tl.sum(tl.where((other < program)[:, None], of_other, 0), axis=0)
        if program == 0:
            pairs_R += tl.sum(tl.load(entry + num_ranks, mask=inside, other=0), axis=0)
    if program == 0:
        store_offsets(row_offsets, rows_R, num_ranks, R)
        store_offsets(pair_offsets, pairs_R, num_ranks, R)
    first = program * tokens_each
    number_stretch(
        pair_slot, rank_of_slot, tl.cumsum(rows_R, axis=0) - rows_R + earlier_R, weights, row_of_pair, token_rows,
        row_slots, row_weights, first, tl.minimum(first + tokens_each, num_tokens), TOP_K, T, K, R,
    )  # fmt: skip
