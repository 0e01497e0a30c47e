"""Keep the best pairs of each group in Triton, without sorting them.

The pairs of a group are brought together, in order, by counting; one program per group then finds the lowest key that
is kept by halving the range of keys, and among equals keeps the first.
"""

import torch

from specmoe.kernels.assign.group_fused import group_by_slot_op
from specmoe.kernels.launch.compiler import kernel, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.launch.operator import operator

BLOCK_PAIRS = 1024


def _new_outputs(group: torch.Tensor, key: torch.Tensor, limits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return group.new_empty(group.shape, dtype=torch.bool), torch.empty_like(limits)


@operator("keep_best", _new_outputs)
def keep_best_op(group: torch.Tensor, key: torch.Tensor, limits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `Steps.keep_best`: kept, demand."""
    num_pairs = group.numel()
    positions, offsets, demand = group_by_slot_op(group, 0, len(limits), 1)
    # Pairs that take no part all go past the end, where nothing is kept.
    place = torch.where(positions >= 0, positions, num_pairs).flatten().long()
    key_at = key.new_empty(num_pairs + 1).scatter_(0, place, key.flatten())
    return mark_kept(key_at, offsets, limits.contiguous())[place].view(group.shape) > 0, demand


def mark_kept(key_at: torch.Tensor, offsets: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """int8, 1 where a key is kept; group g's keys are `key_at[offsets[g] : offsets[g + 1]]`, int64."""
    kept_at = torch.zeros_like(key_at, dtype=torch.int8)
    if len(limits) > 0:
        with device_of(key_at):
            _keep_best[(len(limits),)](key_at, offsets, limits, kept_at, BLOCK=BLOCK_PAIRS)
    return kept_at


@kernel
def _keep_best(
    key_at: tl.tensor, offsets: tl.tensor, limits: tl.tensor, kept_at: tl.tensor, BLOCK: tl.constexpr
) -> None:
    group = tl.program_id(0)
    first, end = tl.load(offsets + group), tl.load(offsets + group + 1)
    limit = tl.load(limits + group)
    if (limit > 0) & (first < end):
        lowest_kept = _lowest_kept(key_at, first, end, limit, BLOCK)
        # All above it, and as many of its equals as there is room for.
        room = limit - _count_at_least(key_at, first, end, lowest_kept, 1, BLOCK)
        for start in range(first, end, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < end
            key = tl.load(key_at + place, mask=inside, other=0)
            equal = ((key == lowest_kept) & inside).to(tl.int32)
            earlier = tl.cumsum(equal, axis=0) - equal
            kept = (key > lowest_kept) | ((equal > 0) & (earlier < room))
            tl.store(kept_at + place, kept.to(tl.int8), mask=inside)
            room -= tl.sum(equal, axis=0)


@kernel
def _lowest_kept(
    key_at: tl.tensor, first: tl.tensor, end: tl.tensor, limit: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """The highest key that at least `limit` of the group's pairs reach; its lowest one where there are fewer pairs."""
    low, high = tl.load(key_at + first), tl.load(key_at + first)
    for start in range(first, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        # Outside, any of the group's keys changes nothing.
        key = tl.load(key_at + place, mask=place < end, other=0)
        key = tl.where(place < end, key, low)
        low = tl.minimum(low, tl.min(key, axis=0))
        high = tl.maximum(high, tl.max(key, axis=0))
    if end - first <= limit:
        high = low
    while low < high:
        # The mean, rounded up, without an overflow.
        middle = (low | high) - ((low ^ high) >> 1)
        if _count_at_least(key_at, first, end, middle, 0, BLOCK) >= limit:
            low = middle
        else:
            high = middle - 1
    return low


@kernel
def _count_at_least(
    key_at: tl.tensor, first: tl.tensor, end: tl.tensor, bound: tl.tensor, STRICT: tl.constexpr, BLOCK: tl.constexpr
) -> tl.tensor:
    """How many of the group's keys are at least `bound`, or above it with `STRICT`."""
    count = 0
    for start in range(first, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        key = tl.load(key_at + place, mask=place < end, other=0)
        reached = (key > bound) if STRICT else (key >= bound)
        count += tl.sum((reached & (place < end)).to(tl.int32), axis=0)
    return count
