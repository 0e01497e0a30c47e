"""Which copy each home rank should use: `dispatch` improved one (home rank, expert) at a time."""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.copies import Copies, Items, Network, copies_of, overload, serve_items, serve_set


@compiled
def improve_dispatch(
    items: Items,
    cover: bool,
    copies: Copies,
    network: Network,
    ceiling: float,
    overload_price: float,
    spread_price: float,
    passes: int,
) -> float:
    """Choose the copies that cost least under the cap, in place; returns the cost with the price of any overload.

    Under `cover` the choice only breaks ties, so it moves load. ceiling: pairs per unit of speed; spread_price: what
    the sum of squared loads over twice the ceiling counts, which prefers even loads among equals.
    """
    ep_size, num_experts = copies.holds.shape
    served = np.zeros(items.experts.shape, dtype=np.int16)
    cost = np.zeros(len(items.experts))
    load = np.zeros(ep_size)
    shift = np.zeros(ep_size)
    total = serve_items(items, cover, copies, network, served, cost, load)
    for _ in range(passes):
        moved = False
        for expert in range(num_experts):
            for home in range(ep_size):
                if copies.num_holders[expert] < 2 or copies.holds[home, expert]:
                    continue
                begin, end = _rows_at_home(items, expert, home)
                if begin == end:
                    continue
                kept = copies.dispatch[home, expert]
                best, best_change = kept, -1e-7
                for position in range(copies.num_holders[expert]):
                    if copies.holders[expert, position] == kept:
                        continue
                    copies.dispatch[home, expert] = copies.holders[expert, position]
                    shift[:] = 0.0
                    change = _change(items, begin, end, home, cover, copies, network, served, cost, shift, False)
                    change += overload_price * overload(load, shift, network, ceiling)
                    change -= overload_price * overload(load, np.zeros(ep_size), network, ceiling)
                    for rank in range(ep_size):
                        spread = shift[rank] * (2.0 * load[rank] + shift[rank]) / network.speed[rank]
                        change += spread_price * spread / (2.0 * ceiling)
                    if change < best_change:
                        best, best_change = copies.holders[expert, position], change
                copies.dispatch[home, expert] = best
                if best != kept:
                    moved = True
                    shift[:] = 0.0
                    total += _change(items, begin, end, home, cover, copies, network, served, cost, shift, True)
                    load += shift
        if not moved:
            break
    return total + overload_price * overload(load, np.zeros(ep_size), network, ceiling)


@compiled
def _rows_at_home(items: Items, expert: int, home: int) -> tuple[int, int]:
    """The range of `items.rows` that holds the expert's items at home on `home`; items are ordered by home."""
    begin, end = items.offsets[expert], items.offsets[expert + 1]
    while begin < end and items.home[items.rows[begin]] < home:
        begin += 1
    stop = begin
    while stop < end and items.home[items.rows[stop]] == home:
        stop += 1
    return begin, stop


@compiled
def _change(
    items: Items,
    begin: int,
    end: int,
    home: int,
    cover: bool,
    copies: Copies,
    network: Network,
    served: NDArray[np.int16],
    cost: NDArray[np.float64],
    shift: NDArray[np.float64],
    keep: bool,
) -> float:
    """How the cost of the items `rows[begin:end]` changes; adds to shift [R]; with `keep`, notes the new state."""
    top_k = items.experts.shape[1]
    score = np.zeros(len(network.node), dtype=np.int64)
    now = np.zeros(top_k, dtype=np.int16)
    change = 0.0
    for position in range(begin, end):
        t = items.rows[position]
        serve_set(items.experts[t], home, cover, copies, network.node, score, now)
        new = items.weight[t] * copies_of(home, now, network.node, network.surcharge)
        change += new - cost[t]
        for k in range(top_k):
            shift[served[t, k]] -= items.weight[t]
            shift[now[k]] += items.weight[t]
        if keep:
            cost[t] = new
            served[t] = now
    return change
