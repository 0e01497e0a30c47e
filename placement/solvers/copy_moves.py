"""What a move of two copies does to cost and loads.

A move is priced by the items of either expert as if the other stayed; the few items that have both are put right
afterwards. Items whose home holds an expert cost nothing for it wherever else it is.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.anneal_state import Move, State, pair_of
from specmoe.placement.solvers.copies import Items, Network
from specmoe.placement.solvers.cover_rule import cost_of_cover, find_cover, mark_of
from specmoe.placement.solvers.cover_words import cost_of_word, served_word, shift_pairs


@compiled
def _bits_of(experts: NDArray[np.int32], t: int, a: int, b: int) -> np.int64:
    """The bits of a and b among the experts of item t."""
    bits = np.int64(0)
    for k in range(experts.shape[1]):
        if experts[t, k] == a or experts[t, k] == b:
            bits |= np.int64(1) << k
    return bits


@compiled
def _flipping(i: int, j: int, bits: np.int64, width: int) -> np.int64:
    """What a word is compared with to flip `bits` on rank i and on rank j."""
    return (bits << (width * i)) | (bits << (width * j))


@compiled
def _flip(held: NDArray[np.uint32], marks: NDArray[np.int64], t: int, i: int, j: int, bits: np.int64) -> None:
    """The same for item t of `held`, and which ranks are marked for it; a second time takes it back."""
    held[t, i] ^= np.uint32(bits)
    _mark(held, marks, t, i)
    if i != j:
        held[t, j] ^= np.uint32(bits)
        _mark(held, marks, t, j)


@compiled
def _mark(held: NDArray[np.uint32], marks: NDArray[np.int64], t: int, rank: int) -> None:
    """Mark whether `rank` holds any expert of item t."""
    others = marks[t, rank >> 6] & ~mark_of(rank)
    marks[t, rank >> 6] = others | (np.int64(held[t, rank] != 0) << (rank & 63))


@compiled
def _is_moot(expert: int, home: int, move: Move, holds: NDArray[np.uint8]) -> bool:
    """Whether items at `home` have the expert there, before the move and after it; no expert is -1."""
    return bool(expert >= 0 and holds[home, expert] and home != move.i and home != move.j)


@compiled
def price(items: Items, network: Network, state: State, move: Move) -> float:
    """How the cost of all items changes; writes to `state.cost_of` what the items of either expert add to it.

    Rank by rank most of the time goes into the covers, and these say how loads shift as well: that is written to
    `state.shift_of` at once.
    """
    if len(state.word):
        of_a = _half_by_words(items, network, state, move.a, move)
        of_b = _half_by_words(items, network, state, move.b, move)
        together = _correction_by_words(items, network, state, move)
    else:
        shift, shift_of = state.shift, state.shift_of
        shift[:], shift_of[:] = 0.0, 0.0
        of_a = _half_by_bits(items, network, state, move.a, move, shift_of[0])
        of_b = _half_by_bits(items, network, state, move.b, move, shift_of[1])
        together = _correction_by_bits(items, network, state, move, shift)
        for rank in range(len(shift)):
            shift_of[0, rank] += 0.5 * shift[rank]
            shift_of[1, rank] += 0.5 * shift[rank]
    state.cost_of[0], state.cost_of[1] = of_a + 0.5 * together, of_b + 0.5 * together
    return of_a + of_b + together


@compiled
def _half_by_words(items: Items, network: Network, state: State, expert: int, move: Move) -> float:
    """What the items of `expert` cost more if it moves alone."""
    rows, place, weights, begin = items.rows, state.place, items.weight, state.begin
    word, copies, holds, near, surcharge = state.word, state.copies, state.holds, state.near, network.surcharge
    full, change, width = (1 << items.experts.shape[1]) - 1, 0.0, state.width
    flipping = _flipping(move.i, move.j, np.int64(1), width)
    for home in range(holds.shape[0]):
        if _is_moot(expert, home, move, holds):
            continue
        for position in range(begin[expert, home], begin[expert, home + 1]):
            t = rows[position]
            flipped = word[t] ^ (flipping << place[position])
            change += weights[t] * (cost_of_word(flipped, np.int64(home), full, near, surcharge, width) - copies[t])
    return change


@compiled
def _correction_by_words(items: Items, network: Network, state: State, move: Move) -> float:
    """What the items of both experts cost more if these move together than if each does alone."""
    experts, both, homes, weights = items.experts, state.both, items.home, items.weight
    word, copies, near, surcharge = state.word, state.copies, state.near, network.surcharge
    full, change, width = (1 << experts.shape[1]) - 1, 0.0, state.width
    pair = pair_of(move.a, move.b, len(items.offsets) - 1)
    for position in range(state.both_offsets[pair], state.both_offsets[pair + 1]):
        t = both[position]
        a = _flipping(move.i, move.j, _bits_of(experts, t, move.a, move.a), width)
        b = _flipping(move.i, move.j, _bits_of(experts, t, move.b, move.b), width)
        together = cost_of_word(word[t] ^ a ^ b, homes[t], full, near, surcharge, width)
        of_a = cost_of_word(word[t] ^ a, homes[t], full, near, surcharge, width)
        of_b = cost_of_word(word[t] ^ b, homes[t], full, near, surcharge, width)
        change += weights[t] * (together - of_a - of_b + copies[t])
    return change


@compiled
def _half_by_bits(
    items: Items, network: Network, state: State, expert: int, move: Move, shift: NDArray[np.float64]
) -> float:
    """As `_half_by_words`; adds to `shift` [R] how their loads change.

    Where neither rank holds another expert of an item that its home lacks, the cover stays as large, and at most this
    expert is served by another rank: the nearest. With many ranks most items are such.
    """
    rows, place, weights, begin, holds = items.rows, state.place, items.weight, state.begin, state.holds
    held, marks, served, copies = state.held, state.marks, state.served, state.copies
    node, surcharge = network.node, network.surcharge
    tie, ranks, serves, trial = state.tie, state.ranks, state.serves, state.trial
    top_k, i, j, change = items.experts.shape[1], move.i, move.j, 0.0
    for home in range(holds.shape[0]):
        if _is_moot(expert, home, move, holds):
            continue
        is_apart = i != j and home != i and home != j
        nearest = _nearest_after(expert, move, home, tie, holds) if is_apart else home
        for position in range(begin[expert, home], begin[expert, home + 1]):
            t, bits = rows[position], np.int64(1) << place[position]
            others = (np.int64(held[t, i]) | np.int64(held[t, j])) & ~(bits | np.int64(held[t, home]))
            if is_apart and others == 0:
                now = served[t, place[position]]
                then = nearest if _serves_alone(served, t, now) else now
                if surcharge == 0.0 or node[now] == node[then]:
                    shift[then] += weights[t]
                    shift[now] -= weights[t]
                    continue
            _flip(held, marks, t, i, j, bits)
            found = find_cover(held, marks, t, home, top_k, tie, ranks, serves, trial, 0)
            _flip(held, marks, t, i, j, bits)
            change += weights[t] * (cost_of_cover(home, node, surcharge, trial, 0, found) - copies[t])
            _shift_served(served, t, trial, weights[t], shift)
    return change


@compiled
def _nearest_after(expert: int, move: Move, home: int, tie: NDArray[np.int64], holds: NDArray[np.uint8]) -> int:
    """The nearest rank to `home` that holds the expert after an exchange."""
    gone, best = (move.i, move.j) if expert == move.a else (move.j, move.i)
    for rank in range(len(tie)):
        if rank != gone and holds[rank, expert] and tie[home, rank] > tie[home, best]:
            best = rank
    return best


@compiled
def _serves_alone(served: NDArray[np.int16], t: int, rank: int) -> bool:
    """Whether `rank` serves a single expert of item t."""
    count = 0
    for k in range(served.shape[1]):
        count += served[t, k] == rank
    return count == 1


@compiled
def _correction_by_bits(items: Items, network: Network, state: State, move: Move, shift: NDArray[np.float64]) -> float:
    """As `_correction_by_words`; adds to `shift` [R] likewise."""
    experts, both, homes, weights = items.experts, state.both, items.home, items.weight
    held, marks, served, copies = state.held, state.marks, state.served, state.copies
    node, surcharge = network.node, network.surcharge
    tie, ranks, serves, trial = state.tie, state.ranks, state.serves, state.trial
    top_k, i, j, change = experts.shape[1], move.i, move.j, 0.0
    pair = pair_of(move.a, move.b, len(items.offsets) - 1)
    for position in range(state.both_offsets[pair], state.both_offsets[pair + 1]):
        t = both[position]
        a, b = _bits_of(experts, t, move.a, move.a), _bits_of(experts, t, move.b, move.b)
        for bits, weight in ((a | b, weights[t]), (a, -weights[t]), (b, -weights[t])):
            _flip(held, marks, t, i, j, bits)
            found = find_cover(held, marks, t, homes[t], top_k, tie, ranks, serves, trial, 0)
            _flip(held, marks, t, i, j, bits)
            change += weight * (cost_of_cover(homes[t], node, surcharge, trial, 0, found) - copies[t])
            _shift_served(served, t, trial, weight, shift)
    return change


@compiled
def _shift_served(
    served: NDArray[np.int16], t: int, trial: NDArray[np.int16], weight: float, shift: NDArray[np.float64]
) -> None:
    """Add to `shift` [R] the `weight` of item t for every expert that a rank serves by `trial[0]` and not by
    `served[t]`, less the reverse.
    """
    for k in range(served.shape[1]):
        if trial[0, k] != served[t, k]:
            shift[trial[0, k]] += weight
            shift[served[t, k]] -= weight


@compiled
def find_shift(items: Items, network: Network, state: State, move: Move) -> None:
    """Write to `state.shift` and `shift_of` how a move that was priced shifts loads."""
    shift_of = state.shift_of
    if len(state.word):
        shift_of[:] = 0.0
        _shift_by_words(items, state, move, move.a, -1, shift_of[0])
        _shift_by_words(items, state, move, move.b, move.a, shift_of[1])
    state.shift[:] = shift_of[0] + shift_of[1]


@compiled
def _shift_by_words(items: Items, state: State, move: Move, expert: int, met: int, shift: NDArray[np.float64]) -> None:
    """Add what the items of `expert` shift, but for those that the expert `met` has counted as well."""
    rows, experts, weights, begin, holds = items.rows, items.experts, items.weight, state.begin, state.holds
    word, near, full, width = state.word, state.near, (1 << experts.shape[1]) - 1, state.width
    for home in range(holds.shape[0]):
        if _is_moot(expert, home, move, holds):
            continue
        elsewhere = -1 if _is_moot(met, home, move, holds) else met
        for position in range(begin[expert, home], begin[expert, home + 1]):
            t = rows[position]
            bits = _bits_of(experts, t, move.a, move.b)
            if bits & (bits - 1) and _bits_of(experts, t, elsewhere, elsewhere):
                continue
            flipped = word[t] ^ _flipping(move.i, move.j, bits, width)
            now = served_word(word[t], np.int64(home), full, near[home], width)
            then = served_word(flipped, np.int64(home), full, near[home], width)
            shift_pairs(now, then, weights[t], shift, width)


@compiled
def carry_out(items: Items, network: Network, state: State, move: Move) -> None:
    """Move, and shift the loads by `state.shift`."""
    for which in range(2):
        expert = move.a if which == 0 else move.b
        if len(state.word):
            _move_words(items, network, state, move, expert)
        else:
            _move_bits(items, network, state, move, expert)
    state.load[:] += state.shift


@compiled
def _move_words(items: Items, network: Network, state: State, move: Move, expert: int) -> None:
    """Move `expert` in its items; their copies are right if the other expert stays or has moved before."""
    rows, place, homes, word, copies = items.rows, state.place, items.home, state.word, state.copies
    near, surcharge = state.near, network.surcharge
    full, width = (1 << items.experts.shape[1]) - 1, state.width
    flipping = _flipping(move.i, move.j, np.int64(1), width)
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        word[t] ^= flipping << place[position]
        copies[t] = cost_of_word(word[t], homes[t], full, near, surcharge, width)


@compiled
def _move_bits(items: Items, network: Network, state: State, move: Move, expert: int) -> None:
    """As `_move_words`, and so is who serves them."""
    rows, place, homes, copies = items.rows, state.place, items.home, state.copies
    held, marks, served, tie, ranks, serves = (
        state.held,
        state.marks,
        state.served,
        state.tie,
        state.ranks,
        state.serves,
    )
    node, surcharge = network.node, network.surcharge
    i, j, top_k = move.i, move.j, items.experts.shape[1]
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        _flip(held, marks, t, i, j, np.int64(1) << place[position])
        found = find_cover(held, marks, t, homes[t], top_k, tie, ranks, serves, served, t)
        copies[t] = cost_of_cover(homes[t], node, surcharge, served, t, found)
