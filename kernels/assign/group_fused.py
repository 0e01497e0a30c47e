"""Group pairs by slot in Triton: a stable counting sort, one launch for a decode step, three for more.

Each program counts its stretch of the pairs by slot; sums over the programs before it say where its pairs of a slot
begin; within its stretch it goes on in order. The atomic additions only count, so no result depends on their order.
"""

import torch

from specmoe.kernels.assign.assignment import SlotGroups
from specmoe.kernels.launch.compiler import ceil_div, kernel, power_of_two, tl
from specmoe.kernels.launch.device import device_of

ONE_LAUNCH_PAIRS = 2048
# Pairs that a program ranks among each other at once, each with each.
TILE_PAIRS = 64
TILE_SLOTS = 256
PROGRAM_PAIRS = 1024
MAX_PROGRAMS = 1024
# The programs' counts together, one for each program and slot.
MAX_COUNTS = 1 << 22
# So many of them a program sums at once.
COUNTS_AT_ONCE = 4096


def group_by_slot_fused(row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int) -> SlotGroups:
    """As `group_by_slot`, for checked arguments."""
    positions, slot_offsets, slot_counts = group_by_slot_op(row_slots, first_slot, num_slots, alignment)
    return SlotGroups(positions=positions, slot_offsets=slot_offsets, slot_counts=slot_counts)


@torch.library.custom_op("specmoe::group_by_slot", mutates_args=())
def group_by_slot_op(
    row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The fields of `SlotGroups`: positions, slot_offsets, slot_counts."""
    outputs = _new_outputs(row_slots, num_slots)
    num_pairs = row_slots.numel()
    programs = _num_programs(num_pairs, num_slots)
    tiles_each = ceil_div(num_pairs, programs * TILE_PAIRS)
    counts = row_slots.new_empty((programs, num_slots))
    sizes = (num_pairs, tiles_each * TILE_PAIRS, first_slot, num_slots)
    tile = {"PAIRS": TILE_PAIRS, "SLOTS": min(TILE_SLOTS, power_of_two(num_slots))}
    with device_of(row_slots):
        if programs == 1:
            _group_in_one[(1,)](row_slots, counts, *outputs, *sizes, alignment, **tile)
            return outputs
        _count_slots[(programs,)](row_slots, counts, *sizes, **tile)
        _sum_programs[(ceil_div(num_slots, tile["SLOTS"]),)](
            counts,
            outputs[2],
            programs,
            num_slots,
            SLOTS=tile["SLOTS"],
            AT_ONCE=max(COUNTS_AT_ONCE // tile["SLOTS"], 1),
        )
        _place[(programs,)](row_slots, counts, *outputs, *sizes, alignment, **tile)
    return outputs


@group_by_slot_op.register_fake
def _(
    row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _new_outputs(row_slots, num_slots)


def _new_outputs(row_slots: torch.Tensor, num_slots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(row_slots), row_slots.new_empty(num_slots + 1), row_slots.new_empty(num_slots)


def _num_programs(num_pairs: int, num_slots: int) -> int:
    if num_pairs <= ONE_LAUNCH_PAIRS or num_slots == 0:
        return 1
    return max(min(ceil_div(num_pairs, PROGRAM_PAIRS), MAX_PROGRAMS, MAX_COUNTS // num_slots), 1)


@kernel
def _group_in_one(
    row_slots: tl.tensor, counts: tl.tensor, positions: tl.tensor, slot_offsets: tl.tensor, slot_counts: tl.tensor,
    num_pairs: tl.tensor, pairs_each: tl.tensor, first_slot: tl.tensor, num_slots: tl.tensor, alignment: tl.tensor,
    PAIRS: tl.constexpr, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
    _count_pairs(row_slots, counts, 0, num_pairs, first_slot, num_slots, PAIRS, SLOTS)
    for start in range(0, num_slots, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        count = tl.load(counts + slot, mask=slot < num_slots, other=0)
        tl.store(slot_counts + slot, count, mask=slot < num_slots)
        tl.store(counts + slot, tl.zeros([SLOTS], dtype=tl.int32), mask=slot < num_slots)
    tl.debug_barrier()
    _add_offsets(counts, slot_offsets, slot_counts, num_slots, alignment, True, SLOTS)
    _place_pairs(row_slots, counts, positions, 0, num_pairs, first_slot, num_slots, PAIRS)


@kernel
def _count_slots(
    row_slots: tl.tensor, counts: tl.tensor, num_pairs: tl.tensor, pairs_each: tl.tensor, first_slot: tl.tensor,
    num_slots: tl.tensor, PAIRS: tl.constexpr, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * pairs_each
    own = counts + tl.program_id(0).to(tl.int64) * num_slots
    end = tl.minimum(first + pairs_each, num_pairs)
    _count_pairs(row_slots, own, first, end, first_slot, num_slots, PAIRS, SLOTS)


@kernel
def _sum_programs(
    counts: tl.tensor, slot_counts: tl.tensor, programs: tl.tensor, num_slots: tl.tensor, SLOTS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:  # fmt: skip
    """Replace each program's counts by the sums over the programs before it; write the sums over all."""
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    total = tl.zeros([SLOTS], dtype=tl.int32)
    for start in range(0, programs, AT_ONCE):
        program = start + tl.arange(0, AT_ONCE)
        entry = counts + program.to(tl.int64)[:, None] * num_slots + slot[None, :]
        inside = (program < programs)[:, None] & (slot < num_slots)[None, :]
        count = tl.load(entry, mask=inside, other=0)
        tl.store(entry, total[None, :] + tl.cumsum(count, axis=0) - count, mask=inside)
        total += tl.sum(count, axis=0)
    tl.store(slot_counts + slot, total, mask=slot < num_slots)


@kernel
def _place(
    row_slots: tl.tensor, counts: tl.tensor, positions: tl.tensor, slot_offsets: tl.tensor, slot_counts: tl.tensor,
    num_pairs: tl.tensor, pairs_each: tl.tensor, first_slot: tl.tensor, num_slots: tl.tensor, alignment: tl.tensor,
    PAIRS: tl.constexpr, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * pairs_each
    own = counts + tl.program_id(0).to(tl.int64) * num_slots
    _add_offsets(own, slot_offsets, slot_counts, num_slots, alignment, tl.program_id(0) == 0, SLOTS)
    end = tl.minimum(first + pairs_each, num_pairs)
    _place_pairs(row_slots, own, positions, first, end, first_slot, num_slots, PAIRS)


@kernel
def _count_pairs(
    row_slots: tl.tensor, counts: tl.tensor, first: tl.tensor, end: tl.tensor, first_slot: tl.tensor,
    num_slots: tl.tensor, PAIRS: tl.constexpr, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
    """counts[s]: how many of the pairs `first : end` are for slot s."""
    for start in range(0, num_slots, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        tl.store(counts + slot, tl.zeros([SLOTS], dtype=tl.int32), mask=slot < num_slots)
    tl.debug_barrier()
    for start in range(first, end, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        slot = tl.load(row_slots + pair, mask=pair < end, other=-1) - first_slot
        tl.atomic_add(counts + slot, 1, mask=(slot >= 0) & (slot < num_slots), sem="relaxed", scope="cta")
    tl.debug_barrier()


@kernel
def _add_offsets(
    counts: tl.tensor, slot_offsets: tl.tensor, slot_counts: tl.tensor, num_slots: tl.tensor, alignment: tl.tensor,
    writes: tl.tensor, SLOTS: tl.constexpr,
) -> None:  # fmt: skip
    """Add where each slot begins to `counts`; where `writes`, write it to `slot_offsets` too."""
    begin = 0
    for start in range(0, num_slots, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        inside = slot < num_slots
        size = (tl.load(slot_counts + slot, mask=inside, other=0) + alignment - 1) // alignment * alignment
        offset = begin + tl.cumsum(size, axis=0) - size
        tl.store(counts + slot, tl.load(counts + slot, mask=inside, other=0) + offset, mask=inside)
        if writes:
            tl.store(slot_offsets + slot, offset, mask=inside)
        begin += tl.sum(size, axis=0)
    if writes:
        tl.store(slot_offsets + num_slots, begin)
    tl.debug_barrier()


@kernel
def _place_pairs(
    row_slots: tl.tensor, next_position: tl.tensor, positions: tl.tensor, first: tl.tensor, end: tl.tensor,
    first_slot: tl.tensor, num_slots: tl.tensor, PAIRS: tl.constexpr,
) -> None:  # fmt: skip
    """Give the pairs `first : end`, in order, the positions from `next_position` of their slot on."""
    place = tl.arange(0, PAIRS)
    for start in range(first, end, PAIRS):
        pair = start + place
        slot = tl.load(row_slots + pair, mask=pair < end, other=-1) - first_slot
        held = (slot >= 0) & (slot < num_slots)
        position = tl.full([PAIRS], -1, tl.int32)
        # Rows past the last one are empty, and buffers of a fixed size hold many of them.
        if tl.max(held.to(tl.int32), axis=0) > 0:
            same = (slot[:, None] == slot[None, :]) & held[None, :]
            earlier = tl.sum((same & (place[None, :] < place[:, None])).to(tl.int32), axis=1)
            later = tl.sum((same & (place[None, :] > place[:, None])).to(tl.int32), axis=1)
            position = tl.where(held, tl.load(next_position + slot, mask=held, other=0) + earlier, -1)
            # All of the tile has read before the last pair of each slot writes, and all has written before the next.
            tl.debug_barrier()
            tl.store(next_position + slot, position + 1, mask=held & (later == 0))
            tl.debug_barrier()
        tl.store(positions + pair, position, mask=pair < end)
