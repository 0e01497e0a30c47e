"""What annealing keeps of every item, and what a move is.

Each item keeps, per rank, which of its K experts the rank holds, as bits (`cover_rule`), or all ranks' in one word
where these fit (`cover_words`).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.copies import Copies, Items, Network
from specmoe.placement.solvers.cover_rule import cost_of_cover, find_cover, mark_words, note_holders, ties_of
from specmoe.placement.solvers.cover_words import near_words, word_of, word_width


class Move(NamedTuple):
    """Rank i gives up its a for b, and another rank j its b for a; alone where i is j."""

    i: int
    a: int
    j: int
    b: int


class State(NamedTuple):
    """held: uint32 [N, R], bit k where the rank holds the item's k-th expert; marks: int64 [N, .], of these ranks;
    served: int16 [N, K], the rank that serves each of its experts; or, with no row in these, word: int64 [N], of
    `width` bits a rank.
    copies: float64 [N], of a token of the item; near: int64 [R], as of `near_words`; load: float64 [R].

    place: int8 [N * K], the k that `items.rows` means; begin: int64 [E, R + 1], where in `items.rows` an expert's items
    of each home begin; holds: that of the copies, as they are now; both, both_offsets: int32 [.], int64 [E * E + 1],
    the items of every two experts. Of the move in question shift: float64 [R], of the loads, shift_of: float64 [2, R],
    by the items of its a and by the others, cost_of: float64 [2], what the items of a cost more and those of b.
    For `find_cover` tie: int64 [R, R]; ranks, serves: int64 [R + 1]; trial: int16 [1, K], as `served` of a moved item.
    """

    held: NDArray[np.uint32]
    marks: NDArray[np.int64]
    served: NDArray[np.int16]
    word: NDArray[np.int64]
    width: int
    near: NDArray[np.int64]
    copies: NDArray[np.float64]
    load: NDArray[np.float64]
    place: NDArray[np.int8]
    begin: NDArray[np.int64]
    holds: NDArray[np.uint8]
    both: NDArray[np.int32]
    both_offsets: NDArray[np.int64]
    shift: NDArray[np.float64]
    shift_of: NDArray[np.float64]
    cost_of: NDArray[np.float64]
    tie: NDArray[np.int64]
    ranks: NDArray[np.int64]
    serves: NDArray[np.int64]
    trial: NDArray[np.int16]


@compiled
def new_state(items: Items, copies: Copies, network: Network) -> State:
    """The items as `copies` serve them."""
    num_items, top_k = items.experts.shape
    ep_size = len(network.node)
    held, marks = np.zeros((num_items, ep_size), dtype=np.uint32), np.zeros((num_items, mark_words(ep_size)), np.int64)
    cost, load, served = np.zeros(num_items), np.zeros(ep_size), np.zeros((num_items, top_k), dtype=np.int16)
    ranks, serves = np.zeros(ep_size + 1, dtype=np.int64), np.zeros(ep_size + 1, dtype=np.int64)
    tie, trial = ties_of(network.node), np.zeros((1, top_k), dtype=np.int16)
    for t in range(num_items):
        home = items.home[t]
        note_holders(items.experts, t, copies.holders, copies.num_holders, held, marks, t)
        found = find_cover(held, marks, t, home, top_k, tie, ranks, serves, served, t)
        cost[t] = cost_of_cover(home, network.node, network.surcharge, served, t, found)
        for k in range(top_k):
            load[served[t, k]] += items.weight[t]
    width = word_width(top_k, ep_size)
    near = near_words(network.node, width)
    word = np.zeros(num_items if width else 0, dtype=np.int64)
    for t in range(len(word)):
        word[t] = word_of(held, t, width)
    both, both_offsets = _items_of_both(items.experts, len(copies.num_holders))
    if width:
        held, marks, served = held[:0], marks[:0], served[:0]
    of_items = _places(items), _begins(items, ep_size), copies.holds, both, both_offsets
    of_move = np.zeros(ep_size), np.zeros((2, ep_size)), np.zeros(2)
    return State(held, marks, served, word, width, near, cost, load, *of_items, *of_move, tie, ranks, serves, trial)


@compiled
def _begins(items: Items, ep_size: int) -> NDArray[np.int64]:
    """int64 [E, R + 1]: the part of `items.rows` with expert e at home r is `[begin[e, r] : begin[e, r + 1]]`."""
    begin = np.zeros((len(items.offsets) - 1, ep_size + 1), dtype=np.int64)
    for expert in range(len(begin)):
        position = items.offsets[expert]
        for home in range(ep_size):
            begin[expert, home] = position
            while position < items.offsets[expert + 1] and items.home[items.rows[position]] == home:
                position += 1
        begin[expert, ep_size] = position
    return begin


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
                offsets[pair_of(experts[t, k], experts[t, other], num_experts) + 2] += 1
    offsets = np.cumsum(offsets)
    for t in range(num_items):
        for k in range(top_k):
            for other in range(k + 1, top_k):
                pair = pair_of(experts[t, k], experts[t, other], num_experts)
                both[offsets[pair + 1]] = t
                offsets[pair + 1] += 1
    return both, offsets[:-1]


@compiled
def pair_of(a: int, b: int, num_experts: int) -> int:
    """The number of a pair of experts, in either order."""
    return min(a, b) * num_experts + max(a, b)
