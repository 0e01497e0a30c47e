"""Simulated annealing of which copies each rank holds, under the `cover` rule and the load cap.

Each item keeps, per rank, which of its K experts the rank holds, as bits; see `cover_rule`. Two ranks exchange an
expert each, or a rank takes another expert in place of a replica. `dispatch` is chosen when the copies are settled.

Most proposals of a cold state are refused, and to price one takes every item of two experts. So what either half of a
move, an expert that leaves a rank for another, cost when it was last priced is kept: a move whose two halves promise
nothing is refused by them alone, but for a few that are priced again, as the state has changed in the meantime.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.copies import Copies, Items, Network, add_copy, drop_copy, overload, set_copies
from specmoe.placement.solvers.cover_rule import note_holders, serve_bits

_MIN_CHANGE = 1e-9
# The part of the moves refused by what they cost before that is priced again all the same.
_PRICED_AGAIN = 0.02


class _State(NamedTuple):
    """held: uint32 [N, R], bit k where the rank holds the item's k-th expert; cost: float64 [N], weighted; load:
    float64 [R].
    """

    held: NDArray[np.uint32]
    cost: NDArray[np.float64]
    load: NDArray[np.float64]


class _Move(NamedTuple):
    """Rank i gives up its a for b, and another rank j its b for a."""

    i: int
    a: int
    j: int
    b: int


class _Scratch(NamedTuple):
    """What proposals write on. items: int64 [N], which items a move touches, the first so many; cost: float64 [N],
    their new costs; shift: float64 [R], of the loads; ranks, serves: int64 [R + 1], see `serve_bits`.
    """

    items: NDArray[np.int64]
    cost: NDArray[np.float64]
    shift: NDArray[np.float64]
    ranks: NDArray[np.int64]
    serves: NDArray[np.int64]


@compiled
def anneal_copies(
    items: Items,
    copies: Copies,
    network: Network,
    ceiling: float,
    overload_price: float,
    proposals: int,
    hot: float,
    cold: float,
    keep_best: bool,
    seed: int,
) -> None:
    """Anneal in place, to the last state, or with `keep_best` to the best one; `dispatch` is left as it was.

    ceiling: pairs per unit of speed; hot, cold: first and last temperature, in tokens.
    """
    np.random.seed(seed)
    scratch = _new_scratch(len(items.experts), copies.holds.shape[0])
    state = _new_state(items, copies, network, scratch)
    halves = _unpriced(copies)
    over = overload(state.load, scratch.shift, network, ceiling)
    now = state.cost.sum() + overload_price * over
    best, best_holds = now, copies.holds.copy()
    cooling = (cold / hot) ** (1.0 / max(1, proposals))
    temperature = hot
    for _ in range(proposals):
        temperature *= cooling
        move = _draw_move(copies)
        if not _may_move(copies, move):
            continue
        allowed = -temperature * math.log(np.random.random() + 1e-300)
        # A shift of loads saves no more than the overload of the ranks concerned, so most moves are refused here.
        relief = overload_price * _overload_of(copies, network, state.load, move, ceiling) if over > 0.0 else 0.0
        foreseen = halves[move.a, move.i, move.j] + halves[move.b, move.j, move.i]
        if foreseen - relief > allowed and np.random.random() > _PRICED_AGAIN:
            continue
        count, change = _price(items, network, state, move, scratch, halves)
        if change - relief > allowed:
            continue
        _find_shift(items, network, state, move, count, scratch)
        new_over = overload(state.load, scratch.shift, network, ceiling)
        change += overload_price * (new_over - over)
        if change > allowed:
            continue
        _move_copies(copies, move)
        _forget(halves, move)
        _move_bits(items, state, move, count, scratch)
        over = new_over if new_over > _MIN_CHANGE else 0.0
        now += change
        if now < best - _MIN_CHANGE:
            best = now
            best_holds[:] = copies.holds
    if keep_best:
        set_copies(copies, best_holds)


@compiled
def _new_scratch(num_items: int, ep_size: int) -> _Scratch:
    return _Scratch(
        np.zeros(num_items, dtype=np.int64),
        np.zeros(num_items),
        np.zeros(ep_size),
        np.zeros(ep_size + 1, dtype=np.int64),
        np.zeros(ep_size + 1, dtype=np.int64),
    )


@compiled
def _new_state(items: Items, copies: Copies, network: Network, scratch: _Scratch) -> _State:
    num_items, top_k = items.experts.shape
    held = np.zeros((num_items, len(network.node)), dtype=np.uint32)
    cost, load = np.zeros(num_items), np.zeros(len(network.node))
    for t in range(num_items):
        note_holders(items.experts, t, copies.holders, copies.num_holders, held, t)
        cost[t] = items.weight[t] * serve_bits(
            held, t, items.home[t], top_k, network.node, network.surcharge, items.weight[t], load,
            scratch.ranks, scratch.serves,
        )  # fmt: skip
    return _State(held, cost, load)


@compiled
def _unpriced(copies: Copies) -> NDArray[np.float64]:
    """float64 [E, R, R]: of an expert that leaves a rank (row) for another (column); where both are one, it leaves or
    joins that rank alone. -inf: not known, so worth pricing.
    """
    ep_size, num_experts = copies.holds.shape
    return np.full((num_experts, ep_size, ep_size), -np.inf)


@compiled
def _forget(halves: NDArray[np.float64], move: _Move) -> None:
    """What was known of the experts of a move on the ranks that it changes is known no longer."""
    for rank in (move.i, move.j):
        halves[move.a, rank] = -np.inf
        halves[move.b, rank] = -np.inf


@compiled
def _draw_move(copies: Copies) -> _Move:
    """A random exchange, or a random replacement where i is j."""
    ep_size, num_experts = copies.holds.shape
    i, j = np.random.randint(ep_size), np.random.randint(ep_size)
    a, b = _held_at_random(copies, i), np.random.randint(num_experts)
    if i != j:
        b = _held_at_random(copies, j)
    return _Move(i, a, j, b)


@compiled
def _held_at_random(copies: Copies, rank: int) -> int:
    """An expert that `rank` holds."""
    expert = np.random.randint(copies.holds.shape[1])
    while not copies.holds[rank, expert]:
        expert = np.random.randint(copies.holds.shape[1])
    return expert


@compiled
def _may_move(copies: Copies, move: _Move) -> bool:
    """Whether no rank would hold an expert twice, and no expert be without a rank."""
    if copies.holds[move.i, move.b]:
        return False
    return bool(copies.num_holders[move.a] > 1 if move.i == move.j else copies.holds[move.j, move.a] == 0)


@compiled
def _overload_of(copies: Copies, network: Network, load: NDArray[np.float64], move: _Move, ceiling: float) -> float:
    """Pairs per unit of speed above `ceiling` on the ranks that hold a or b, the two that move them among these."""
    over = 0.0
    for rank in range(len(load)):
        if copies.holds[rank, move.a] or copies.holds[rank, move.b]:
            over += max(0.0, load[rank] / network.speed[rank] - ceiling)
    return over


@compiled
def _move_copies(copies: Copies, move: _Move) -> None:
    """Carry out a move."""
    drop_copy(copies, move.a, move.i)
    add_copy(copies, move.b, move.i)
    if move.i != move.j:
        drop_copy(copies, move.b, move.j)
        add_copy(copies, move.a, move.j)


@compiled
def _bits_of(experts: NDArray[np.int32], t: int, a: int, b: int) -> np.uint32:
    """The bits of a and b among the experts of item t."""
    bits = np.uint32(0)
    for k in range(experts.shape[1]):
        if experts[t, k] == a or experts[t, k] == b:
            bits |= np.uint32(1) << np.uint32(k)
    return bits


@compiled
def _flip(held: NDArray[np.uint32], t: int, i: int, j: int, bits: np.uint32) -> None:
    """Carry out a move for item t, or take it back: a leaves rank i and b joins it, so either way their bits flip."""
    held[t, i] ^= bits
    if i != j:
        held[t, j] ^= bits


@compiled
def _move_bits(items: Items, state: _State, move: _Move, count: int, scratch: _Scratch) -> None:
    """Carry out a move for the first `count` of `scratch.items`."""
    for position in range(count):
        t = scratch.items[position]
        _flip(state.held, t, move.i, move.j, _bits_of(items.experts, t, move.a, move.b))
        state.cost[t] = scratch.cost[position]
    state.load[:] += scratch.shift


@compiled
def _price(
    items: Items, network: Network, state: _State, move: _Move, scratch: _Scratch, halves: NDArray[np.float64]
) -> tuple[int, float]:
    """How many items use a or b, and how their cost changes; notes which items and their new costs, and in `halves`
    what the items of either expert add to it.
    """
    experts, homes, weights, rows, held = items.experts, items.home, items.weight, items.rows, state.held
    node, surcharge, old_cost, load = network.node, network.surcharge, state.cost, state.load
    touched, new_cost, ranks, serves = scratch.items, scratch.cost, scratch.ranks, scratch.serves
    i, a, j, b = move.i, move.a, move.j, move.b
    top_k = experts.shape[1]
    count, alone, shared = 0, np.zeros(2), 0.0
    for which in range(2):
        expert = a if which == 0 else b
        for position in range(items.offsets[expert], items.offsets[expert + 1]):
            t = rows[position]
            bits = _bits_of(experts, t, a, b)
            # Two bits: the item has both a and b, and was met among those of a.
            if which == 1 and bits & (bits - np.uint32(1)):
                continue
            _flip(held, t, i, j, bits)
            cost = weights[t] * serve_bits(held, t, homes[t], top_k, node, surcharge, 0.0, load, ranks, serves)
            _flip(held, t, i, j, bits)
            touched[count], new_cost[count] = t, cost
            if bits & (bits - np.uint32(1)):
                shared += cost - old_cost[t]
            else:
                alone[which] += cost - old_cost[t]
            count += 1
    halves[a, i, j], halves[b, j, i] = alone[0] + 0.5 * shared, alone[1] + 0.5 * shared
    return count, alone[0] + alone[1] + shared


@compiled
def _find_shift(items: Items, network: Network, state: _State, move: _Move, count: int, scratch: _Scratch) -> None:
    """Write to `scratch.shift` how a move that touches the first `count` of `scratch.items` shifts loads."""
    experts, homes, weights, held = items.experts, items.home, items.weight, state.held
    node, touched, shift, ranks, serves = network.node, scratch.items, scratch.shift, scratch.ranks, scratch.serves
    i, a, j, b = move.i, move.a, move.j, move.b
    top_k = experts.shape[1]
    shift[:] = 0.0
    for position in range(count):
        t = touched[position]
        bits = _bits_of(experts, t, a, b)
        serve_bits(held, t, homes[t], top_k, node, 0.0, -weights[t], shift, ranks, serves)
        _flip(held, t, i, j, bits)
        serve_bits(held, t, homes[t], top_k, node, 0.0, weights[t], shift, ranks, serves)
        _flip(held, t, i, j, bits)
