"""The device functions that count a stretch of pairs by slot, and give them their places in slot-major order.

Shape suffixes: S slots that a program deals with, N pairs of a tile.
"""

from specmoe.kernels.launch.compiler import kernel, tl


@kernel
def count_pairs(
    row_slots: tl.tensor, first: tl.tensor, end: tl.tensor, first_slot: tl.tensor, num_slots: tl.tensor,
    S: tl.constexpr, AT_ONCE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """int32 [S]: how many of the pairs `first : end` are for each of the first S slots from `first_slot` on."""
    count_S = tl.zeros([S], dtype=tl.int32)
    for start in range(first, end, AT_ONCE):
        pair = start + tl.arange(0, AT_ONCE)
        slot = tl.load(row_slots + pair, mask=pair < end, other=-1) - first_slot
        held = (slot >= 0) & (slot < num_slots) & (slot < S)
        # Rows past the last one are empty, and buffers of a fixed size hold many of them.
        if tl.max(held.to(tl.int32), axis=0) > 0:
            count_S += tl.histogram(tl.where(held, slot, 0), S, mask=held)
    return count_S


@kernel
def offsets_of(count_S: tl.tensor, alignment: tl.tensor) -> tl.tensor:
    """int32 [S]: where each slot begins, counted from the first, when each takes a multiple of `alignment` places."""
    size_S = (count_S + alignment - 1) // alignment * alignment
    return tl.cumsum(size_S, axis=0) - size_S


@kernel
def place_pairs(
    row_slots: tl.tensor, positions: tl.tensor, next_S: tl.tensor, first: tl.tensor, end: tl.tensor,
    first_slot: tl.tensor, chunk: tl.tensor, num_slots: tl.tensor, N: tl.constexpr, S: tl.constexpr,
) -> None:  # fmt: skip
    """Give the pairs `first : end` of the slots `chunk : chunk + S`, in order, the positions from `next_S` of their
    slot on; the first chunk's program also says which pairs have none."""
    place_N = tl.arange(0, N)
    for start in range(first, end, N):
        pair_N = start + place_N
        slot_N = tl.load(row_slots + pair_N, mask=pair_N < end, other=-1) - first_slot
        exists_N = (slot_N >= 0) & (slot_N < num_slots)
        slot_N -= chunk
        held_N = exists_N & (slot_N >= 0) & (slot_N < S)
        position_N = tl.full([N], -1, tl.int32)
        if tl.max(held_N.to(tl.int32), axis=0) > 0:
            slot_N = tl.where(held_N, slot_N, -1)
            # The pairs before it are the first dimension, so that a thread counts for its own pair.
            same_NN = (slot_N[:, None] == slot_N[None, :]) & (place_N[:, None] < place_N[None, :])
            earlier_N = tl.sum(same_NN.to(tl.int32), axis=0)
            slot_N = tl.where(held_N, slot_N, 0)
            position_N = tl.where(held_N, tl.gather(next_S, slot_N, axis=0) + earlier_N, -1)
            next_S += tl.histogram(slot_N, S, mask=held_N)
        tl.store(positions + pair_N, position_N, mask=(pair_N < end) & (held_N | ((chunk == 0) & ~exists_N)))
