"""What annealing keeps of every item, and what a move of two copies does to it.

Each item keeps, per rank, which of its K experts the rank holds, as bits (`cover_rule`), or all ranks' in one word
where these fit (`cover_words`). A move is priced by the items of either expert as if the other stayed; the few items
that have both are put right afterwards.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.copies import Copies, Items, Network
from specmoe.placement.solvers.cover_rule import note_holders, serve_bits
from specmoe.placement.solvers.cover_words import copies_of_word, fits_words, served_word, shift_pairs, word_of


class Move(NamedTuple):
    """Rank i gives up its a for b, and another rank j its b for a; alone where i is j."""

    i: int
    a: int
    j: int
    b: int


class State(NamedTuple):
    """held: uint32 [N, R], bit k where the rank holds the item's k-th expert; or, with no row in it, word: int64 [N].
    copies: float64 [N], of a token of the item; load: float64 [R].

    place: int8 [N * K], the k that `items.rows` means; both, both_offsets: int32 [.], int64 [E * E + 1], the items of
    every two experts. shift: float64 [R], of the loads by the move in question, shift_of: float64 [2, R], by the items
    of its a and by the others; ranks, serves: int64 [R + 1], for `serve_bits`.
    """

    held: NDArray[np.uint32]
    word: NDArray[np.int64]
    copies: NDArray[np.float64]
    load: NDArray[np.float64]
    place: NDArray[np.int8]
    both: NDArray[np.int32]
    both_offsets: NDArray[np.int64]
    shift: NDArray[np.float64]
    shift_of: NDArray[np.float64]
    ranks: NDArray[np.int64]
    serves: NDArray[np.int64]


@compiled
def new_state(items: Items, copies: Copies, network: Network) -> State:
    """The items as `copies` serve them."""
    num_items, top_k = items.experts.shape
    ep_size = len(network.node)
    held = np.zeros((num_items, ep_size), dtype=np.uint32)
    cost, load = np.zeros(num_items), np.zeros(ep_size)
    ranks, serves = np.zeros(ep_size + 1, dtype=np.int64), np.zeros(ep_size + 1, dtype=np.int64)
    for t in range(num_items):
        note_holders(items.experts, t, copies.holders, copies.num_holders, held, t)
        cost[t] = serve_bits(
            held, t, items.home[t], top_k, network.node, network.surcharge, items.weight[t], load, ranks, serves
        )
    fits = fits_words(top_k, network.node)
    word = np.zeros(num_items if fits else 0, dtype=np.int64)
    for t in range(len(word)):
        word[t] = word_of(held, t)
    both, both_offsets = _items_of_both(items.experts, len(copies.num_holders))
    held = held[:0] if fits else held
    shift, shift_of = np.zeros(ep_size), np.zeros((2, ep_size))
    return State(held, word, cost, load, _places(items), both, both_offsets, shift, shift_of, ranks, serves)


@compiled
def _places(items: Items) -> NDArray[np.int8]:
    """int8 [N * K]: where in its item each of `items.rows` has the expert."""
    place = np.zeros(len(items.rows), dtype=np.int8)
    for expert in range(len(items.offsets) - 1):
        for position in range(items.offsets[expert], items.offsets[expert + 1]):
            while items.experts[items.rows[position], place[position]] != expert:
                place[position] += 1
    return place


@compiled
def _items_of_both(experts: NDArray[np.int32], num_experts: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """int32 [.] and int64 [E * E + 1]: the items that have experts a < b are `both[offsets[a * E + b] : ...]`."""
    num_items, top_k = experts.shape
    offsets = np.zeros(num_experts * num_experts + 2, dtype=np.int64)
    both = np.zeros(num_items * top_k * (top_k - 1) // 2, dtype=np.int32)
    for t in range(num_items):
        for k in range(top_k):
            for other in range(k + 1, top_k):
                offsets[_pair(experts[t, k], experts[t, other], num_experts) + 2] += 1
    offsets = np.cumsum(offsets)
    for t in range(num_items):
        for k in range(top_k):
            for other in range(k + 1, top_k):
                pair = _pair(experts[t, k], experts[t, other], num_experts)
                both[offsets[pair + 1]] = t
                offsets[pair + 1] += 1
    return both, offsets[:-1]


@compiled
def _pair(a: int, b: int, num_experts: int) -> int:
    """The number of a pair of experts, in either order."""
    return min(a, b) * num_experts + max(a, b)


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
def _flip(held: NDArray[np.uint32], t: int, i: int, j: int, bits: np.int64) -> None:
    """The same for item t of `held`; a second time takes it back."""
    held[t, i] ^= np.uint32(bits)
    if i != j:
        held[t, j] ^= np.uint32(bits)


@compiled
def price(items: Items, network: Network, state: State, move: Move, halves: NDArray[np.float64]) -> float:
    """How the cost of all items changes; notes in `halves` [E, R, R] what the items of either expert add to it."""
    if len(state.word):
        of_a, of_b = _half_by_words(items, state, move.a, move), _half_by_words(items, state, move.b, move)
        together = _correction_by_words(items, state, move)
    else:
        of_a = _half_by_bits(items, network, state, move.a, move)
        of_b = _half_by_bits(items, network, state, move.b, move)
        together = _correction_by_bits(items, network, state, move)
    halves[move.a, move.i, move.j], halves[move.b, move.j, move.i] = of_a + 0.5 * together, of_b + 0.5 * together
    return of_a + of_b + together


@compiled
def _half_by_words(items: Items, state: State, expert: int, move: Move) -> float:
    """What the items of `expert` cost more if it moves alone."""
    rows, place, homes, weights = items.rows, state.place, items.home, items.weight
    word, copies = state.word, state.copies
    full, flipping, change = (1 << items.experts.shape[1]) - 1, _flipping(move.i, move.j), 0.0
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        flipped = word[t] ^ (flipping << place[position])
        change += weights[t] * (copies_of_word(flipped, homes[t], full) - copies[t])
    return change


@compiled
def _correction_by_words(items: Items, state: State, move: Move) -> float:
    """What the items of both experts cost more if these move together than if each does alone."""
    experts, both, homes, weights = items.experts, state.both, items.home, items.weight
    word, copies = state.word, state.copies
    full, flipping, change = (1 << experts.shape[1]) - 1, _flipping(move.i, move.j), 0.0
    pair = _pair(move.a, move.b, len(items.offsets) - 1)
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
    rows, place, homes, weights = items.rows, state.place, items.home, items.weight
    held, copies, ranks, serves = state.held, state.copies, state.ranks, state.serves
    node, surcharge, load = network.node, network.surcharge, state.load
    top_k, i, j, change = items.experts.shape[1], move.i, move.j, 0.0
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t, bits = rows[position], np.int64(1) << place[position]
        _flip(held, t, i, j, bits)
        cost = serve_bits(held, t, homes[t], top_k, node, surcharge, 0.0, load, ranks, serves)
        _flip(held, t, i, j, bits)
        change += weights[t] * (cost - copies[t])
    return change


@compiled
def _correction_by_bits(items: Items, network: Network, state: State, move: Move) -> float:
    """As `_correction_by_words`."""
    experts, both, homes, weights = items.experts, state.both, items.home, items.weight
    held, copies, ranks, serves = state.held, state.copies, state.ranks, state.serves
    node, surcharge, load = network.node, network.surcharge, state.load
    top_k, i, j, change = experts.shape[1], move.i, move.j, 0.0
    pair = _pair(move.a, move.b, len(items.offsets) - 1)
    for position in range(state.both_offsets[pair], state.both_offsets[pair + 1]):
        t, cost = both[position], copies[both[position]]
        a, b = _bits_of(experts, t, move.a, move.a), _bits_of(experts, t, move.b, move.b)
        for bits, sign in ((a | b, 1.0), (a, -1.0), (b, -1.0)):
            _flip(held, t, i, j, bits)
            cost += sign * serve_bits(held, t, homes[t], top_k, node, surcharge, 0.0, load, ranks, serves)
            _flip(held, t, i, j, bits)
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
    """Add what the items of `expert` shift, but for those that have the expert `met` as well."""
    rows, experts, homes, weights = items.rows, items.experts, items.home, items.weight
    word, full, flipping = state.word, (1 << experts.shape[1]) - 1, _flipping(move.i, move.j)
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        bits = _bits_of(experts, t, move.a, move.b)
        if bits & (bits - 1) and _bits_of(experts, t, met, met):
            continue
        now = served_word(word[t], homes[t], full)
        then = served_word(word[t] ^ (flipping * bits), homes[t], full)
        shift_pairs(now, then, weights[t], shift)


@compiled
def _shift_by_bits(
    items: Items, network: Network, state: State, move: Move, expert: int, met: int, shift: NDArray[np.float64]
) -> None:
    """As `_shift_by_words`."""
    rows, experts, homes, weights = items.rows, items.experts, items.home, items.weight
    held, node, ranks, serves = state.held, network.node, state.ranks, state.serves
    i, j, top_k = move.i, move.j, experts.shape[1]
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        bits = _bits_of(experts, t, move.a, move.b)
        if bits & (bits - 1) and _bits_of(experts, t, met, met):
            continue
        serve_bits(held, t, homes[t], top_k, node, 0.0, -weights[t], shift, ranks, serves)
        _flip(held, t, i, j, bits)
        serve_bits(held, t, homes[t], top_k, node, 0.0, weights[t], shift, ranks, serves)
        _flip(held, t, i, j, bits)


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
    rows, place, homes, copies, held = items.rows, state.place, items.home, state.copies, state.held
    node, surcharge, load, ranks, serves = network.node, network.surcharge, state.load, state.ranks, state.serves
    i, j, top_k = move.i, move.j, items.experts.shape[1]
    for position in range(items.offsets[expert], items.offsets[expert + 1]):
        t = rows[position]
        _flip(held, t, i, j, np.int64(1) << place[position])
        copies[t] = serve_bits(held, t, homes[t], top_k, node, surcharge, 0.0, load, ranks, serves)
