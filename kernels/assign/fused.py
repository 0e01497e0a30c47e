"""Assign in Triton: count the rows of each rank, then number them; one launch for a decode step, two for more.

Both count and number in token order, so the result is the reference's, bit for bit, every time. Nothing is sorted, and
no atomic operation takes part.
"""

import torch

from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.assign.number import count_tokens, fill_rows, number_rows, store_offsets
from specmoe.kernels.launch.compiler import ceil_div, kernel, power_of_two, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.routing_tables import RoutingTables

# Up to so many pairs one program does it all.
ONE_LAUNCH_PAIRS = 2048
# A program's block of tokens x pairs x ranks, held in registers.
BLOCK_ELEMENTS = 4096
BLOCK_TOKENS = 64
# Each program of the second launch reads every program's counts, so their number is bounded.
MAX_PROGRAMS = 1024
COUNTS_AT_ONCE = 16


def assign_fused(
    chosen: torch.Tensor, top_k_weights: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables, choice: str
) -> Assignment:
    """As `assign`, for checked arguments.

    choice: "static" or "cover", and then `chosen` holds experts; or "given", and then it holds each pair's slot (-1
    for a dropped pair).
    """
    names = ("pair_slot", "row_of_pair", "token_rows", "row_offsets", "pair_offsets", "row_slots", "row_weights")
    tensors: list[torch.Tensor] = assign_op(
        chosen, top_k_weights, home_rank, tables.dispatch_slot, tables.slot_on_rank, tables.rank_of_slot,
        tables.node_of_rank, choice,
    )  # fmt: skip
    return Assignment(**dict(zip(names, tensors, strict=True)))


@torch.library.custom_op("specmoe::assign", mutates_args=())
def assign_op(
    chosen: torch.Tensor,
    top_k_weights: torch.Tensor,
    home_rank: torch.Tensor,
    dispatch_slot: torch.Tensor,
    slot_on_rank: torch.Tensor,
    rank_of_slot: torch.Tensor,
    node_of_rank: torch.Tensor,
    choice: str,
) -> list[torch.Tensor]:
    """The fields of `Assignment`, in their order."""
    outputs = _new_outputs(chosen, dispatch_slot)
    pair_slot, row_of_pair, token_rows, row_offsets, pair_offsets, row_slots, row_weights = outputs
    (num_tokens, top_k), (num_ranks, num_experts) = chosen.shape, dispatch_slot.shape
    shape = _BlockShape(top_k, num_ranks)
    tables = (home_rank, dispatch_slot, slot_on_rank, rank_of_slot, node_of_rank)
    rows = (row_of_pair, token_rows, row_slots, row_weights)
    sizes = (num_tokens, num_experts, num_ranks)
    constants = {**shape.constants, "CHOICE": choice}
    with device_of(chosen):
        if num_tokens * top_k <= ONE_LAUNCH_PAIRS:
            _assign_in_one[(1,)](
                chosen, top_k_weights, *tables, pair_slot, row_offsets, pair_offsets, *rows, *sizes, **constants
            )
            return outputs
        tokens_each = shape.block_tokens * ceil_div(num_tokens, shape.block_tokens * MAX_PROGRAMS)
        programs = ceil_div(num_tokens, tokens_each)
        counts = chosen.new_empty((programs, 2, num_ranks), dtype=torch.int32)
        _count[(programs,)](
            chosen, *tables, pair_slot, row_slots, row_weights, counts, tokens_each, *sizes, **constants
        )
        _number[(programs,)](
            top_k_weights, rank_of_slot, pair_slot, counts, row_offsets, pair_offsets, *rows, tokens_each, programs,
            num_tokens, num_ranks, **shape.constants, COUNTS_AT_ONCE=COUNTS_AT_ONCE,
        )  # fmt: skip
    return outputs


@assign_op.register_fake
def _(
    chosen: torch.Tensor,
    top_k_weights: torch.Tensor,
    home_rank: torch.Tensor,
    dispatch_slot: torch.Tensor,
    slot_on_rank: torch.Tensor,
    rank_of_slot: torch.Tensor,
    node_of_rank: torch.Tensor,
    choice: str,
) -> list[torch.Tensor]:
    return _new_outputs(chosen, dispatch_slot)


def _new_outputs(chosen: torch.Tensor, dispatch_slot: torch.Tensor) -> list[torch.Tensor]:
    (num_tokens, top_k), num_ranks = chosen.shape, dispatch_slot.shape[0]
    num_rows = num_tokens * min(top_k, num_ranks)
    pairs, offsets, rows = (num_tokens, top_k), (num_ranks + 1,), (num_rows, top_k)
    integers = [chosen.new_empty(size, dtype=torch.int32) for size in (pairs, pairs, pairs, offsets, offsets, rows)]
    return [*integers, chosen.new_empty(rows, dtype=torch.float32)]


class _BlockShape:
    """How many tokens a program holds at once, from what a token takes: pairs x max(pairs, ranks) elements."""

    def __init__(self, top_k: int, num_ranks: int) -> None:
        k, r = power_of_two(top_k), power_of_two(num_ranks)
        self.block_tokens = min(max(BLOCK_ELEMENTS // (k * max(k, r)), 1), BLOCK_TOKENS)
        self.constants = {"TOP_K": top_k, "MAX_ROWS": min(top_k, num_ranks), "T": self.block_tokens, "K": k, "R": r}


@kernel
def _assign_in_one(
    chosen: tl.tensor, weights: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor,
    rank_of_slot: tl.tensor, node_of_rank: tl.tensor, pair_slot: tl.tensor, row_offsets: tl.tensor,
    pair_offsets: tl.tensor, row_of_pair: tl.tensor, token_rows: tl.tensor, row_slots: tl.tensor,
    row_weights: tl.tensor, num_tokens: tl.tensor, num_experts: tl.tensor, num_ranks: tl.tensor, TOP_K: tl.constexpr,
    MAX_ROWS: tl.constexpr, T: tl.constexpr, K: tl.constexpr, R: tl.constexpr, CHOICE: tl.constexpr,
) -> None:  # fmt: skip
    fill_rows(row_slots, row_weights, 0, num_tokens * MAX_ROWS * TOP_K)
    rows_R, pairs_R = count_tokens(
        chosen, home_rank, dispatch_slot, slot_on_rank, rank_of_slot, node_of_rank, pair_slot, 0, num_tokens,
        num_experts, num_ranks, TOP_K, T, K, R, CHOICE,
    )  # fmt: skip
    store_offsets(row_offsets, rows_R, num_ranks, R)
    store_offsets(pair_offsets, pairs_R, num_ranks, R)
    # What other threads of the program have written above is read, or written over, below.
    tl.debug_barrier()
    number_rows(
        pair_slot, weights, rank_of_slot, row_of_pair, token_rows, row_slots, row_weights,
        tl.cumsum(rows_R, axis=0) - rows_R, 0, num_tokens, TOP_K, T, K, R,
    )  # fmt: skip


@kernel
def _count(
    chosen: tl.tensor, home_rank: tl.tensor, dispatch_slot: tl.tensor, slot_on_rank: tl.tensor,
    rank_of_slot: tl.tensor, node_of_rank: tl.tensor, pair_slot: tl.tensor, row_slots: tl.tensor,
    row_weights: tl.tensor, counts: tl.tensor, tokens_each: tl.tensor, num_tokens: tl.tensor, num_experts: tl.tensor,
    num_ranks: tl.tensor, TOP_K: tl.constexpr, MAX_ROWS: tl.constexpr, T: tl.constexpr, K: tl.constexpr,
    R: tl.constexpr, CHOICE: tl.constexpr,
) -> None:  # fmt: skip
    first = tl.program_id(0) * tokens_each
    end = tl.minimum(first + tokens_each, num_tokens)
    entries_each_token = tl.full([], MAX_ROWS * TOP_K, tl.int64)
    fill_rows(row_slots, row_weights, first * entries_each_token, end * entries_each_token)
    rows_R, pairs_R = count_tokens(
        chosen, home_rank, dispatch_slot, slot_on_rank, rank_of_slot, node_of_rank, pair_slot, first, end,
        num_experts, num_ranks, TOP_K, T, K, R, CHOICE,
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
    TOP_K: tl.constexpr, MAX_ROWS: tl.constexpr, T: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    COUNTS_AT_ONCE: tl.constexpr,
) -> None:  # fmt: skip
    program = tl.program_id(0)
    rank_R = tl.arange(0, R)
    rows_R = tl.zeros([R], dtype=tl.int32)
    pairs_R = tl.zeros([R], dtype=tl.int32)
    earlier_R = tl.zeros([R], dtype=tl.int32)
    for start in range(0, programs, COUNTS_AT_ONCE):
        other = start + tl.arange(0, COUNTS_AT_ONCE)
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
    number_rows(
        pair_slot, weights, rank_of_slot, row_of_pair, token_rows, row_slots, row_weights,
        tl.cumsum(rows_R, axis=0) - rows_R + earlier_R, first, tl.minimum(first + tokens_each, num_tokens),
        TOP_K, T, K, R,
    )  # fmt: skip
