"""What a move of two copies does to cost and loads.

A move is priced by the items of either expert as if the other stayed; the few items that have both are put right
afterwards. Items whose home holds an expert cost nothing for it wherever else it is.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.anneal_state import Move, State, pair_of
from specmoe.placement.solvers.copies import Items, Network
from specmoe.placement.solvers.cover_rule import mark_of, serve_bits
from specmoe.placement.solvers.cover_words import copies_of_word, served_word, shift_pairs


@compiled
def _bits_of(experts: NDArray[np.int32], t: int, a: int, b: int) -> np.int64:
    """The bits of a and b among the experts of item t."""
    bits = np.int64(0)
    for k in range(experts.shape[1]):
        if experts[t, k] == a or experts[t, k] == b:
            bits |= np.int64(1) << k
    return bits


@compiled
def _flipping(i: int, j: int) -> np.int64:
    """What bits are multiplied by to be flipped in a word, on rank i and on rank j."""
    return (np.int64(1) << (4 * i)) | (np.int64(1) << (4 * j))


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
    """How the cost of all items changes; writes to `state.cost_of` what the items of either expert add to it."""
    if len(state.word):
        of_a, of_b = _half_by_words(items, state, move.a, move), _half_by_words(items, state, move.b, move)
        together = _correction_by_words(items, state, move)
    else:
        of_a = _half_by_bits(items, network, state, move.a, move)
        of_b = _half_by_bits(items, network, state, move.b, move)
        together = _correction_by_bits(items, network, state, move)
    state.cost_of[0], state.cost_of[1] = of_a + 0.5 * together, of_b + 0.5 * together
    return of_a + of_b + together


@compiled
def _half_by_words(items: Items, state: State, expert: int, move: Move) -> float:
    """What the items of `expert` cost more if it moves alone."""
    rows, place, weights, begin = items.rows, state.place, items.weight, state.begin
    word, copies, holds = state.word, state.copies, state.holds
    full, flipping, change = (1 << items.experts.shape[1]) - 1, _flipping(move.i, move.j), 0.0
    for home in range(holds.shape[0]):
        if _is_moot(expert, home, move, holds):
            continue
        for position in range(begin[expert, home], begin[expert, home + 1]):
            t = rows[position]
            flipped = word[t] ^ (flipping << place[position])
            change += weights[t] * (copies_of_word(flipped, np.int64(home), full) - copies[t])
    return change


@compiled
def _correction_by_words(items: Items, state: State, move: Move) -> float:
    """What the items of both experts cost more if these move together than if each does alone."""
    experts, both, homes, weights = items.experts, state.both, items.home, items.weight
    word, copies = state.word, state.copies
    full, flipping, change = (1 << experts.shape[1]) - 1, _flipping(move.i, move.j), 0.0
    pair = pair_of(move.a, move.b, len(items.offsets) - 1)
    for position in range(state.both_offsets[pair], state.both_offsets[pair + 1]):
        t = both[position]
        a, b = _bits_of(experts, t, move.a, move.a), _bits_of(experts, t, move.b, move.b)
        together = copies_of_word(word[t] ^ (flipping * (a | b)), homes[t], full)
        of_a = copies_of_word(word[t] ^ (flipping * a), homes[t], full)
        of_b = copies_of_word(word[t] ^ (flipping * b), homes[t], full)
        change += weights[t] * (together - of_a - of_b + copies[t])
    return change


@compiled
def _half_by_bits(items: Items, network: Network, state: State, expert: int, move: Move) -> float:
    """As `_half_by_words`."""
    rows, place, weights, begin, holds = items.rows, state.place, items.weight, state.begin, state.holds
    held, marks, copies, ranks, serves = state.held, state.marks, state.copies, state.ranks, state.serves
    node, surcharge, load = network.node, network.surcharge, state.load
    top_k, i, j, change = items.experts.shape[1], move.i, move.j, 0.0
    for home in range(holds.shape[0]):
        if _is_moot(expert, home, move, holds):
            continue
        for position in range(begin[expert, home], begin[expert, home + 1]):
            t, bits = rows[position], np.int64(1) << place[position]
            _flip(held, marks, t, i, j, bits)
            cost = serve_bits(held, marks, t, home, top_k, node, surcharge, 0.0, load, ranks, serves)
            _flip(held, marks, t, i, j, bits)
            change += weights[t] * (cost - copies[t])
    return change


@compiled
def _correction_by_bits(items: Items, network: Network, state: State, move: Move) -> float:
    """As `_correction_by_words`."""
    experts, both, homes, weights = items.experts, state.both, items.home, items.weight
    held, marks, copies, ranks, serves = state.held, state.marks, state.copies, state.ranks, state.serves
    node, surcharge, load = network.node, network.surcharge, state.load
    top_k, i, j, change = experts.shape[1], move.i, move.j, 0.0
    pair = pair_of(move.a, move.b, len(items.offsets) - 1)
    for position in range(state.both_offsets[pair], state.both_offsets[pair + 1]):
        t, cost = both[position], copies[both[position]]
        a, b = _bits_of(experts, t, move.a, move.a), _bits_of(experts, t, move.b, move.b)
        for bits, sign in ((a | b, 1.0), (a, -1.0), (b, -1.0)):
            _flip(held, marks, t, i, j, bits)
            cost += sign * serve_bits(held, marks, t, homes[t], top_k, node, surcharge, 0.0, load, ranks, serves)
            _flip(held, marks, t, i, j, bits)
        change += weights[t] * cost
    return change


@compiled
def find_shift(items: Items, network: Network, state: State, move: Move) -> None:
    """Write to `state.shift` and `shift_of` how a move shifts loads."""
    shift_of = state.shift_of
    shift_of[:] = 0.0
    for which in range(2):
        expert, met = (move.a, -1) if which == 0 else (move.b, move.a)
        if len(state.word):
            _shift_by_words(items, state, move, expert, met, shift_of[which])
        else:
            _shift_by_bits(items, network, state, move, expert, met, shift_of[which])
    state.shift[:] = shift_of[0] + shift_of[1]


@compiled
def _shift_by_words(items: Items, state: State, move: Move, expert: int, met: int, shift: NDArray[np.float64]) -> None:
    """Add what the items of `expert` shift, but for those that the expert `met` has counted as well."""
    rows, experts, weights, begin, holds = items.rows, items.experts, items.weight, state.begin, state.holds
    word, full, flipping = state.word, (1 << experts.shape[1]) - 1, _flipping(move.i, move.j)
    for home in range(holds.shape[0]):
        if _is_moot(expert, home, move, holds):
            continue
        elsewhere = -1 if _is_moot(met, home, move, holds) else met
        for position in range(begin[expert, home], begin[expert, home + 1]):
            t = rows[position]
            bits = _bits_of(experts, t, move.a, move.b)
            if bits & (bits - 1) and _bits_of(experts, t, elsewhere, elsewhere):
                continue
            now = served_word(word[t], np.int64(home), full)
            then = served_word(word[t] ^ (flipping * bits), np.int64(home), full)
            shift_pairs(now, then, weights[t], shift)


@compiled
def _shift_by_bits(
    items: Items, network: Network, state: State, move: Move, expert: int, met: int, shift: NDArray[np.float64]
) -> None:
    """As `_shift_by_words`."""
    rows, experts, weights, begin, holds = items.rows, items.experts, items.weight, state.begin, state.holds
    held, marks, node, ranks, serves = state.held, state.marks, network.node, state.ranks, state.serves
    i, j, top_k = move.i, move.j, experts.shape[1]
    for home in range(holds.shape[0]):
        if _is_moot(expert, home, move, holds):
            continue
        elsewhere = -1 if _is_moot(met, home, move, holds) else met
        for position in range(begin[expert, home], begin[expert, home + 1]):
            t = rows[position]
            bits = _bits_of(experts, t, move.a, move.b)
            if bits & (bits - 1) and _bits_of(experts, t, elsewhere, elsewhere):
                continue
            serve_bits(held, marks, t, home, top_k, node, 0.0, -weights[t], shift, ranks, serves)
            _flip(held, marks, t, i, j, bits)
            serve_bits(held, marks, t, home, top_k, node, 0.0, weights[t], shift, ranks, serves)
            _flip(held, marks, t, i, j, bits)


@compiled
def carry_out(items: Items, network: Network, state: State, move: Move) -> None:
    """Move, and shift the loads by `state.shift`."""
    for which in range(2):
        expert = move.a if which == 0 else move.b
        if len(state.word):
            _move_words(items, state, move, expert)
        else:
            _move_bits(items, network, state, move, expert)
    state.load[:] += state.shift


@compiled
def _move_words(items: Items, state: State, move: Move, expert: int) -> None:
    """Move `expert` in its items; their copies are right if the other expert stays or has moved before."""
    rows, place, homes, word, copies = items.rows, state.place, items.home, state.word, state.copies
    full, flipping = (1 << items.experts.shape[1]) - 1, _flipping(move.i, move.j)
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        word[t] ^= flipping << place[position]
        copies[t] = copies_of_word(word[t], homes[t], full)


@compiled
def _move_bits(items: Items, network: Network, state: State, move: Move, expert: int) -> None:
    """As `_move_words`."""
    rows, place, homes, copies = items.rows, state.place, items.home, state.copies
    held, marks = state.held, state.marks
    node, surcharge, load, ranks, serves = network.node, network.surcharge, state.load, state.ranks, state.serves
    i, j, top_k = move.i, move.j, items.experts.shape[1]
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        _flip(held, marks, t, i, j, np.int64(1) << place[position])
        copies[t] = serve_bits(held, marks, t, homes[t], top_k, node, surcharge, 0.0, load, ranks, serves)
