"""Simulated annealing of which copies each rank holds, under the `cover` rule and the load cap.

Two ranks exchange an expert each, or a rank takes another expert in place of a replica; `copy_moves` prices what that
does to the items. `dispatch` is chosen when the copies are settled.

Most proposals are refused, and to price one takes every item of two experts. So what either half of a move, an expert
that leaves a rank for another, cost and did to loads when it was last priced is kept: a move whose two halves promise
nothing is refused by them alone, but for a few that are priced again, as the state has changed in the meantime.
"""

import math

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.anneal_state import Move, new_state
from specmoe.placement.solvers.copies import Copies, Items, Network, add_copy, drop_copy, overload, set_copies
from specmoe.placement.solvers.copy_moves import carry_out, find_shift, price
from specmoe.placement.solvers.known_halves import (
    foreseen_cost,
    foreseen_overload,
    move_slots,
    note_cost,
    note_shift,
    nothing_known,
)

_MIN_CHANGE = 1e-9
# The part of the moves that is priced again all the same: of those refused by what they cost before whatever the loads
# do, and of those refused by what they did to loads, which is less certain.
_PRICED_AGAIN, _WEIGHED_AGAIN = 0.02, 0.2


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
    load: NDArray[np.float64],
    seed: int,
) -> None:
    """Anneal in place, to the last state, or with `keep_best` to the best one; `dispatch` is left as it was.

    ceiling: pairs per unit of speed; hot, cold: first and last temperature, in tokens; load: float64 [R], what ranks
    serve to begin with by a dispatch that evens out loads, empty where equals are left to the nearest. What such a
    dispatch shifts is taken to stay as it is.
    """
    np.random.seed(seed)
    state = new_state(items, copies, network)
    if len(load):
        state.load[:] = load
    halves = nothing_known(copies)
    over = overload(state.load, state.shift, network, ceiling)
    now = (items.weight * state.copies).sum() + overload_price * over
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
        foreseen = foreseen_cost(halves, move)
        if foreseen - relief > allowed and np.random.random() > _PRICED_AGAIN:
            continue
        foreseen += overload_price * foreseen_overload(halves, move, network, state.load, ceiling, over)
        if foreseen > allowed and np.random.random() > _WEIGHED_AGAIN:
            continue
        change = price(items, network, state, move)
        note_cost(halves, move, state.cost_of)
        if change - relief > allowed:
            continue
        find_shift(items, network, state, move)
        note_shift(halves, move, state.shift_of)
        new_over = overload(state.load, state.shift, network, ceiling)
        change += overload_price * (new_over - over)
        if change > allowed:
            continue
        _move_copies(copies, move)
        move_slots(halves, move)
        carry_out(items, network, state, move)
        over = new_over if new_over > _MIN_CHANGE else 0.0
        now += change
        if now < best - _MIN_CHANGE:
            best = now
            best_holds[:] = copies.holds
    if keep_best:
        set_copies(copies, best_holds)


@compiled
def _draw_move(copies: Copies) -> Move:
    """A random exchange, or a random replacement where i is j."""
    ep_size, num_experts = copies.holds.shape
    i, j = np.random.randint(ep_size), np.random.randint(ep_size)
    a, b = _held_at_random(copies, i), np.random.randint(num_experts)
    if i != j:
        b = _held_at_random(copies, j)
    return Move(i, a, j, b)


@compiled
def _held_at_random(copies: Copies, rank: int) -> int:
    """An expert that `rank` holds."""
    expert = np.random.randint(copies.holds.shape[1])
    while not copies.holds[rank, expert]:
        expert = np.random.randint(copies.holds.shape[1])
    return expert


@compiled
def _may_move(copies: Copies, move: Move) -> bool:
    """Whether no rank would hold an expert twice, and no expert be without a rank."""
    if copies.holds[move.i, move.b]:
        return False
    return bool(copies.num_holders[move.a] > 1 if move.i == move.j else copies.holds[move.j, move.a] == 0)


@compiled
def _overload_of(copies: Copies, network: Network, load: NDArray[np.float64], move: Move, ceiling: float) -> float:
    """Pairs per unit of speed above `ceiling` on the ranks that hold a or b, the two that move them among these."""
    over = 0.0
    for rank in range(len(load)):
        if copies.holds[rank, move.a] or copies.holds[rank, move.b]:
            over += max(0.0, load[rank] / network.speed[rank] - ceiling)
    return over


@compiled
def _move_copies(copies: Copies, move: Move) -> None:
    """Carry out a move."""
    drop_copy(copies, move.a, move.i)
    add_copy(copies, move.b, move.i)
    if move.i != move.j:
        drop_copy(copies, move.b, move.j)
        add_copy(copies, move.a, move.j)
