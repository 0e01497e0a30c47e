"""Group pairs by slot in Triton: a stable counting sort, one launch for a decode step, three for more.

Each program counts its stretch of the pairs by slot; sums over the programs before it say where its pairs of a slot
begin; within its stretch it goes on in order, tile by tile. In a decode step every program counts all pairs by itself,
which is sooner done than a second launch. Counts are kept in registers; there is no atomic operation on memory.

Shape suffixes: S slots that a program deals with, N pairs of a tile.
"""

import torch

from specmoe.kernels.assign.assignment import SlotGroups
from specmoe.kernels.assign.place import count_pairs, offsets_of, place_pairs
from specmoe.kernels.launch.compiler import ceil_div, kernel, power_of_two, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.launch.operator import operator

# Up to so many pairs, and slots in one program's registers, every program counts them all.
ONE_LAUNCH_PAIRS = 4096
# Pairs that a program ranks among each other at once, each with each.
TILE_PAIRS = 128
# Slots that a program deals with; for more there are more programs. A histogram has no fewer places than a warp.
MAX_SLOTS = 1024
MIN_SLOTS = 32
# Pairs that a program counts at once.
PAIRS_AT_ONCE = 1024
PROGRAM_PAIRS = 1024
MAX_PROGRAMS = 1024
# The programs' counts together, one for each program and slot.
MAX_COUNTS = 1 << 22
# What sums them takes: a memory sector's slots, and so many programs at once.
SUM_SLOTS = 8
SUM_PROGRAMS = 512


def group_by_slot_fused(row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int) -> SlotGroups:
    """As `group_by_slot`, for checked arguments."""
    positions, slot_offsets, slot_counts = group_by_slot_op(row_slots, first_slot, num_slots, alignment)
    return SlotGroups(positions=positions, slot_offsets=slot_offsets, slot_counts=slot_counts)


def _new_outputs(
    row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(row_slots), row_slots.new_empty(num_slots + 1), row_slots.new_empty(num_slots)


@operator("group_by_slot", _new_outputs)
def group_by_slot_op(
    row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fields of `SlotGroups`: positions, slot_offsets, slot_counts."""
    outputs = _new_outputs(row_slots, first_slot, num_slots, alignment)
    num_pairs = row_slots.numel()
    if num_slots == 0:
        outputs[0].fill_(-1)
        outputs[1].zero_()
        return outputs
    slots = max(min(power_of_two(num_slots), MAX_SLOTS), MIN_SLOTS)
    chunks = ceil_div(num_slots, slots)
    with device_of(row_slots):
        if num_pairs <= ONE_LAUNCH_PAIRS and chunks == 1:
            _group_in_one[(max(ceil_div(num_pairs, TILE_PAIRS), 1),)](
                row_slots, *outputs, num_pairs, first_slot, num_slots, alignment, N=TILE_PAIRS, S=slots,
                AT_ONCE=PAIRS_AT_ONCE,
            )  # fmt: skip
            return outputs
        programs = max(min(ceil_div(num_pairs, PROGRAM_PAIRS), MAX_PROGRAMS, MAX_COUNTS // num_slots), 1)
        pairs_each = TILE_PAIRS * ceil_div(num_pairs, programs * TILE_PAIRS)
        counts = row_slots.new_empty((programs, num_slots))
        sizes = (num_pairs, pairs_each, first_slot, num_slots)
        _count_slots[(programs, chunks)](row_slots, counts, *sizes, S=slots, AT_ONCE=PAIRS_AT_ONCE)
        _sum_programs[(ceil_div(num_slots, SUM_SLOTS),)](
            counts, outputs[2], programs, num_slots, S=SUM_SLOTS, AT_ONCE=SUM_PROGRAMS
        )
        _place[(programs, chunks)](row_slots, counts, *outputs, *sizes, alignment, N=TILE_PAIRS, S=slots)
    return outputs


@kernel
def _group_in_one(
    row_slots: tl.tensor, positions: tl.tensor, slot_offsets: tl.tensor, slot_counts: tl.tensor, num_pairs: tl.tensor,
    first_slot: tl.tensor, num_slots: tl.tensor, alignment: tl.tensor, N: tl.constexpr, S: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:  # fmt: skip
    first = tl.program_id(0) * N
    earlier_S = count_pairs(row_slots, 0, tl.minimum(first, num_pairs), first_slot, num_slots, S, AT_ONCE)
    count_S = earlier_S + count_pairs(row_slots, first, num_pairs, first_slot, num_slots, S, AT_ONCE)
    slot_S = tl.arange(0, S)
    offset_S = offsets_of(count_S, alignment)
    if tl.program_id(0) == 0:
        tl.store(slot_counts + slot_S, count_S, mask=slot_S < num_slots)
        # The places past the last slot hold nothing, so the first of them begins where all ends.
        tl.store(slot_offsets + slot_S, offset_S, mask=slot_S <= num_slots)
        if num_slots == S:
            tl.store(slot_offsets + S, tl.sum((count_S + alignment - 1) // alignment * alignment, axis=0))
    end = tl.minimum(first + N, num_pairs)
    place_pairs(row_slots, positions, offset_S + earlier_S, first, end, first_slot, 0, num_slots, N, S)


@kernel
def _count_slots(
    row_slots: tl.tensor, counts: tl.tensor, num_pairs: tl.tensor, pairs_each: tl.tensor, first_slot: tl.tensor,
    num_slots: tl.tensor, S: tl.constexpr, AT_ONCE: tl.constexpr,
) -> None:  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * pairs_each
    end = tl.minimum(first + pairs_each, num_pairs)
    chunk = tl.program_id(1) * S
    count_S = count_pairs(row_slots, first, end, first_slot + chunk, num_slots - chunk, S, AT_ONCE)
    slot_S = chunk + tl.arange(0, S)
    tl.store(counts + tl.program_id(0).to(tl.int64) * num_slots + slot_S, count_S, mask=slot_S < num_slots)


@kernel
def _sum_programs(
    counts: tl.tensor, slot_counts: tl.tensor, programs: tl.tensor, num_slots: tl.tensor, S: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:  # fmt: skip
    """Replace each program's counts by the sums over the programs before it; write the sums over all."""
    slot_S = tl.program_id(0) * S + tl.arange(0, S)
    total_S = tl.zeros([S], dtype=tl.int32)
    for start in range(0, programs, AT_ONCE):
        program = start + tl.arange(0, AT_ONCE)
        entry = counts + program.to(tl.int64)[:, None] * num_slots + slot_S[None, :]
        inside = (program < programs)[:, None] & (slot_S < num_slots)[None, :]
        count = tl.load(entry, mask=inside, other=0)
        tl.store(entry, total_S[None, :] + tl.cumsum(count, axis=0) - count, mask=inside)
        total_S += tl.sum(count, axis=0)
    tl.store(slot_counts + slot_S, total_S, mask=slot_S < num_slots)


@kernel
def _place(
    row_slots: tl.tensor, counts: tl.tensor, positions: tl.tensor, slot_offsets: tl.tensor, slot_counts: tl.tensor,
    num_pairs: tl.tensor, pairs_each: tl.tensor, first_slot: tl.tensor, num_slots: tl.tensor, alignment: tl.tensor,
    N: tl.constexpr, S: tl.constexpr,
) -> None:  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * pairs_each
    end = tl.minimum(first + pairs_each, num_pairs)
    chunk = tl.program_id(1) * S
    begin = 0
    for start in range(0, chunk, S):
        count_S = tl.load(slot_counts + start + tl.arange(0, S))
        begin += tl.sum((count_S + alignment - 1) // alignment * alignment, axis=0)
    slot_S = chunk + tl.arange(0, S)
    count_S = tl.load(slot_counts + slot_S, mask=slot_S < num_slots, other=0)
    offset_S = begin + offsets_of(count_S, alignment)
    if tl.program_id(0) == 0:
        tl.store(slot_offsets + slot_S, offset_S, mask=slot_S < num_slots)
        if chunk + S >= num_slots:
            size = tl.sum((count_S + alignment - 1) // alignment * alignment, axis=0)
            tl.store(slot_offsets + num_slots, begin + size)
    own = counts + tl.program_id(0).to(tl.int64) * num_slots + slot_S
    next_S = offset_S + tl.load(own, mask=slot_S < num_slots, other=0)
    place_pairs(row_slots, positions, next_S, first, end, first_slot, chunk, num_slots, N, S)
