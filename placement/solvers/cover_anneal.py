"""Simulated annealing of which copies each rank holds, under the `cover` rule and the load cap.

Each item keeps, per rank, which of its K experts the rank holds, as bits; a token's ranks are then found by counting
bits. Two ranks exchange an expert each, or a rank takes another expert in place of a replica. Ties of the rule go to
the nearest rank: `dispatch`, which may break them otherwise, is chosen when the copies are settled.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.copies import Copies, Items, Network, add_copy, drop_copy, overload, set_copies

_MIN_CHANGE = 1e-9


class _State(NamedTuple):
    """held: uint32 [N, R], bit k where the rank holds the item's k-th expert; cost: float64 [N], weighted; load:
    float64 [R]; stamp: int64 [nodes + 1], when a node was last counted, and the clock.
    """

    held: NDArray[np.uint32]
    cost: NDArray[np.float64]
    load: NDArray[np.float64]
    stamp: NDArray[np.int64]


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
    ep_size = copies.holds.shape[0]
    state = _new_state(items, copies, network)
    nothing = np.zeros(ep_size)
    over = overload(state.load, nothing, network, ceiling)
    now = state.cost.sum() + overload_price * over
    best, best_holds = now, copies.holds.copy()
    touched = np.zeros(len(items.experts), dtype=np.int64)
    new_cost = np.zeros(len(items.experts))
    cooling = (cold / hot) ** (1.0 / max(1, proposals))
    temperature = hot
    for _ in range(proposals):
        temperature *= cooling
        i, j = np.random.randint(ep_size), np.random.randint(ep_size)
        a, b = _held_at_random(copies, i), np.random.randint(copies.holds.shape[1])
        if i != j:
            b = _held_at_random(copies, j)
        if not _may_move(copies, i, a, j, b):
            continue
        allowed = -temperature * math.log(np.random.random() + 1e-300)
        _move_bits(items, state.held, i, a, j, b)
        count, change = _price(items, network, state, a, b, touched, new_cost)
        # Without an overload the load can only make a change worse, so most are refused here.
        if over == 0.0 and change > allowed:
            _move_bits(items, state.held, i, b, j, a)
            continue
        shift = np.zeros(ep_size)
        _add_loads(items, network, state, touched[:count], 1.0, shift)
        _move_bits(items, state.held, i, b, j, a)
        _add_loads(items, network, state, touched[:count], -1.0, shift)
        new_over = overload(state.load, shift, network, ceiling)
        change += overload_price * (new_over - over)
        if change > allowed:
            continue
        _move_bits(items, state.held, i, a, j, b)
        _move_copies(copies, i, a, j, b)
        for position in range(count):
            state.cost[touched[position]] = new_cost[position]
        for rank in range(ep_size):
            state.load[rank] += shift[rank]
        over = new_over if new_over > _MIN_CHANGE else 0.0
        now += change
        if now < best - _MIN_CHANGE:
            best = now
            best_holds[:] = copies.holds
    if keep_best:
        set_copies(copies, best_holds)


@compiled
def _new_state(items: Items, copies: Copies, network: Network) -> _State:
    num_items, top_k = items.experts.shape
    held = np.zeros((num_items, len(network.node)), dtype=np.uint32)
    for t in range(num_items):
        for k in range(top_k):
            expert = items.experts[t, k]
            for position in range(copies.num_holders[expert]):
                held[t, copies.holders[expert, position]] |= np.uint32(1) << np.uint32(k)
    stamp = np.zeros(network.node.max() + 2, dtype=np.int64)
    state = _State(held, np.zeros(num_items), np.zeros(len(network.node)), stamp)
    for t in range(num_items):
        state.cost[t] = items.weight[t] * _serve(items, network, state, t, 1.0, state.load)
    return state


@compiled
def _bits(value: np.uint32) -> int:
    """How many bits are set."""
    count = 0
    while value:
        value &= value - np.uint32(1)
        count += 1
    return count


@compiled
def _serve(items: Items, network: Network, state: _State, t: int, sign: float, load: NDArray[np.float64]) -> float:
    """The copies that item t costs by the cover rule; adds its pairs to load [R], `sign` 0 for not at all."""
    ep_size, top_k = len(network.node), items.experts.shape[1]
    home = items.home[t]
    weight = sign * items.weight[t]
    full = np.uint32((1 << top_k) - 1)
    left = full & ~state.held[t, home]
    if sign != 0.0:
        load[home] += weight * (top_k - _bits(left))
    clock = len(state.stamp) - 1
    state.stamp[clock] += 1
    state.stamp[network.node[home]] = state.stamp[clock]
    cost = 0.0
    while left:
        best, best_score = home, 0
        for step in range(1, ep_size):
            rank = home + step if home + step < ep_size else home + step - ep_size
            serves = state.held[t, rank] & left
            if serves:
                score = 2 * _bits(serves) + (1 if network.node[rank] == network.node[home] else 0)
                if score > best_score:
                    best, best_score = rank, score
        if sign != 0.0:
            load[best] += weight * _bits(state.held[t, best] & left)
        left &= ~state.held[t, best]
        cost += 1.0
        if state.stamp[network.node[best]] != state.stamp[clock]:
            state.stamp[network.node[best]] = state.stamp[clock]
            cost += network.surcharge
    return cost


@compiled
def _held_at_random(copies: Copies, rank: int) -> int:
    """An expert that `rank` holds."""
    expert = np.random.randint(copies.holds.shape[1])
    while not copies.holds[rank, expert]:
        expert = np.random.randint(copies.holds.shape[1])
    return expert


@compiled
def _may_move(copies: Copies, i: int, a: int, j: int, b: int) -> bool:
    """Whether rank i may give up its a for b, and another rank j its b for a."""
    if copies.holds[i, b]:
        return False
    return bool(copies.num_holders[a] > 1 if i == j else copies.holds[j, a] == 0)


@compiled
def _move_copies(copies: Copies, i: int, a: int, j: int, b: int) -> None:
    """Rank i takes b for a; another rank j takes a for b."""
    drop_copy(copies, a, i)
    add_copy(copies, b, i)
    if i != j:
        drop_copy(copies, b, j)
        add_copy(copies, a, j)


@compiled
def _move_bits(items: Items, held: NDArray[np.uint32], i: int, a: int, j: int, b: int) -> None:
    """As `_move_copies`, for the items' bits."""
    for which in range(2):
        expert = a if which == 0 else b
        for position in range(items.offsets[expert], items.offsets[expert + 1]):
            t = items.rows[position]
            bit = np.uint32(0)
            for k in range(items.experts.shape[1]):
                if items.experts[t, k] == expert:
                    bit = np.uint32(1) << np.uint32(k)
            # a leaves rank i and b joins it, so either way the bit there flips; at another rank j likewise.
            held[t, i] ^= bit
            if i != j:
                held[t, j] ^= bit


@compiled
def _price(
    items: Items,
    network: Network,
    state: _State,
    a: int,
    b: int,
    touched: NDArray[np.int64],
    new_cost: NDArray[np.float64],
) -> tuple[int, float]:
    """How many items use a or b, and how their cost changes; writes which items and their new costs."""
    top_k = items.experts.shape[1]
    count, change = 0, 0.0
    for which in range(2):
        expert = a if which == 0 else b
        for position in range(items.offsets[expert], items.offsets[expert + 1]):
            t = items.rows[position]
            counted = False
            for k in range(top_k):
                counted = counted or (which == 1 and items.experts[t, k] == a)
            if counted:
                continue
            touched[count] = t
            new_cost[count] = items.weight[t] * _serve(items, network, state, t, 0.0, state.load)
            change += new_cost[count] - state.cost[t]
            count += 1
    return count, change


@compiled
def _add_loads(
    items: Items, network: Network, state: _State, touched: NDArray[np.int64], sign: float, shift: NDArray[np.float64]
) -> None:
    """Add the pairs of the items `touched` to shift [R]."""
    for position in range(len(touched)):
        _serve(items, network, state, touched[position], sign, shift)
