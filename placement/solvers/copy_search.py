"""Which copies each rank should hold under the `cover` rule: greedy gains to start, then simulated annealing."""

import math

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.compiled import compiled
from specmoe.placement.solvers.copies import (
    Copies,
    Items,
    Network,
    add_copy,
    copies_of,
    drop_copy,
    overload,
    serve_items,
    serve_set,
    set_copies,
)

_MIN_CHANGE = 1e-9


@compiled
def copy_gains(items: Items, copies: Copies, network: Network) -> NDArray[np.float64]:
    """float64 [R, E]: the cost saved under `cover` by one more copy of each expert on each rank, all else equal.

    Only a copy on a token's home, or on a rank that serves it already, can save one; no other rank is tried.
    """
    top_k = items.experts.shape[1]
    score = np.zeros(len(network.node), dtype=np.int64)
    served = np.zeros(top_k, dtype=np.int16)
    changed = np.zeros(top_k, dtype=np.int16)
    gain = np.zeros(copies.holds.shape)
    for t in range(len(items.experts)):
        experts, home = items.experts[t], items.home[t]
        serve_set(experts, home, True, copies, network.node, score, served)
        before = copies_of(home, served, network.node, network.surcharge)
        if before == 0.0:
            continue
        for k in range(top_k):
            expert = experts[k]
            for m in range(top_k + 1):
                rank = served[m] if m < top_k else home
                tried = copies.holds[rank, expert] == 1
                for earlier in range(m):
                    tried = tried or served[earlier] == rank
                if tried:
                    continue
                add_copy(copies, expert, rank)
                serve_set(experts, home, True, copies, network.node, score, changed)
                saved = before - copies_of(home, changed, network.node, network.surcharge)
                gain[rank, expert] += items.weight[t] * saved
                drop_copy(copies, expert, rank)
    return gain


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
    seed: int,
) -> float:
    """Anneal under `cover`: two ranks exchange an expert each, or a rank takes another expert for a replica.

    Leaves the best state found in `copies` (its `dispatch` is not kept up) and returns its cost with the price of any
    overload. ceiling: pairs per unit of speed; hot, cold: temperatures, in tokens.
    """
    np.random.seed(seed)
    ep_size, num_experts = copies.holds.shape
    served = np.zeros(items.experts.shape, dtype=np.int16)
    cost = np.zeros(len(items.experts))
    load = np.zeros(ep_size)
    shift = np.zeros(ep_size)
    total = serve_items(items, True, copies, network, served, cost, load)
    over = overload(load, shift, network, ceiling)
    now = total + overload_price * over
    best, best_holds = now, copies.holds.copy()
    cooling = (cold / hot) ** (1.0 / max(1, proposals))
    temperature = hot
    for _ in range(proposals):
        temperature *= cooling
        i, j = np.random.randint(ep_size), np.random.randint(ep_size)
        a, b = _held_at_random(copies, i), np.random.randint(num_experts)
        if i != j:
            b = _held_at_random(copies, j)
        if not _may_move(copies, i, a, j, b):
            continue
        _move(copies, i, a, j, b)
        shift[:] = 0.0
        change = _change(items, copies, network, a, b, served, cost, shift, False)
        new_over = overload(load, shift, network, ceiling)
        change += overload_price * (new_over - over)
        if change > -temperature * math.log(np.random.random() + 1e-300):
            _move(copies, i, b, j, a)
            continue
        shift[:] = 0.0
        _change(items, copies, network, a, b, served, cost, shift, True)
        load += shift
        over = new_over
        now += change
        if now < best - _MIN_CHANGE:
            best = now
            best_holds[:] = copies.holds
    set_copies(copies, best_holds)
    return best


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
def _move(copies: Copies, i: int, a: int, j: int, b: int) -> None:
    """Rank i takes b for a; another rank j takes a for b."""
    drop_copy(copies, a, i)
    add_copy(copies, b, i)
    if i != j:
        drop_copy(copies, b, j)
        add_copy(copies, a, j)


@compiled
def _change(
    items: Items,
    copies: Copies,
    network: Network,
    first: int,
    second: int,
    served: NDArray[np.int16],
    cost: NDArray[np.float64],
    shift: NDArray[np.float64],
    keep: bool,
) -> float:
    """How the cost of the items that use either expert changes from the `served` and `cost` that are noted.

    Adds to shift [R] how the loads change; with `keep`, notes the new ones.
    """
    top_k = items.experts.shape[1]
    score = np.zeros(len(network.node), dtype=np.int64)
    now = np.zeros(top_k, dtype=np.int16)
    change = 0.0
    for which in range(2):
        expert = first if which == 0 else second
        for position in range(items.offsets[expert], items.offsets[expert + 1]):
            t = items.rows[position]
            experts, home = items.experts[t], items.home[t]
            counted = False
            for k in range(top_k):
                counted = counted or (which == 1 and experts[k] == first)
            if counted:
                continue
            serve_set(experts, home, True, copies, network.node, score, now)
            new = items.weight[t] * copies_of(home, now, network.node, network.surcharge)
            change += new - cost[t]
            for k in range(top_k):
                shift[served[t, k]] -= items.weight[t]
                shift[now[k]] += items.weight[t]
            if keep:
                cost[t] = new
                served[t] = now
    return change
