"""A layer's copies of experts as the searches hold them, and what a token costs under them.

The cost of a token is the number of remote ranks that serve it, plus `surcharge` for each other node among them. It is
counted here, and not with the metrics, because a search asks for it millions of times for single expert sets.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.cover_rule import cost_of_cover, find_cover, mark_words, note_holders, ties_of
from specmoe.placement.solvers.cover_words import cost_of_word, near_words, word_of, word_width


class Items(NamedTuple):
    """What a search weighs: expert sets [N, K] (int32) with a home rank [N] (int32) and a weight in tokens [N]
    (float64), ordered by home; expert e is in the items `rows[offsets[e] : offsets[e + 1]]` (int32, int64 [E + 1]).
    """

    experts: NDArray[np.int32]
    weight: NDArray[np.float64]
    home: NDArray[np.int32]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]


class Copies(NamedTuple):
    """Which rank holds what: holds: uint8 [R, E]; holders: int16 [E, R] and num_holders: int16 [E], the ranks of each
    expert's copies in any order; dispatch: int16 [R, E], the rank that a home rank uses for an expert.
    """

    holds: NDArray[np.uint8]
    holders: NDArray[np.int16]
    num_holders: NDArray[np.int16]
    dispatch: NDArray[np.int16]


class Network(NamedTuple):
    """node: int32 [R]; surcharge: what another node costs beyond its first copy; speed: float64 [R]."""

    node: NDArray[np.int32]
    surcharge: float
    speed: NDArray[np.float64]


def copies_from(holds: NDArray[np.bool_]) -> Copies:
    """The state of a placement, bool [R, E], every remote expert dispatched to its lowest rank."""
    ep_size, num_experts = holds.shape
    copies = Copies(
        np.zeros((ep_size, num_experts), dtype=np.uint8),
        np.zeros((num_experts, ep_size), dtype=np.int16),
        np.zeros(num_experts, dtype=np.int16),
        np.zeros((ep_size, num_experts), dtype=np.int16),
    )
    set_copies(copies, holds.astype(np.uint8))
    lowest = holds.argmax(axis=0)
    copies.dispatch[:] = np.where(holds, np.arange(ep_size)[:, None], lowest[None, :])
    return copies


@compiled
def set_copies(copies: Copies, holds: NDArray[np.uint8]) -> None:
    """Make `holds` [R, E] the state's; `dispatch` is left as it was."""
    copies.num_holders[:] = 0
    for expert in range(holds.shape[1]):
        for rank in range(holds.shape[0]):
            copies.holds[rank, expert] = 0
            if holds[rank, expert]:
                add_copy(copies, expert, rank)


@compiled
def add_copy(copies: Copies, expert: int, rank: int) -> None:
    """Put a copy of `expert` on `rank`, which must not hold one."""
    copies.holders[expert, copies.num_holders[expert]] = rank
    copies.num_holders[expert] += 1
    copies.holds[rank, expert] = 1


@compiled
def drop_copy(copies: Copies, expert: int, rank: int) -> None:
    """Take the copy of `expert` from `rank`, which must hold one."""
    last = copies.num_holders[expert] - 1
    for position in range(last):
        if copies.holders[expert, position] == rank:
            copies.holders[expert, position] = copies.holders[expert, last]
    copies.num_holders[expert] = last
    copies.holds[rank, expert] = 0


@compiled
def serve_set(
    experts: NDArray[np.int32],
    home: int,
    cover: bool,
    copies: Copies,
    node: NDArray[np.int32],
    score: NDArray[np.int64],
    served: NDArray[np.int16],
) -> None:
    """Write the serving rank of each expert to `served` [K], by `dispatch` or by the contract's cover rule.

    score: int64 [R], all zero before and after.
    """
    top_k, ep_size = len(experts), len(node)
    left = 0
    for k in range(top_k):
        expert = experts[k]
        if copies.holds[home, expert]:
            served[k] = home
        elif not cover:
            served[k] = copies.dispatch[home, expert]
        else:
            served[k] = -1
            left += 1
    # The tie-breaks as digits of one number: held, on the home's node, named by dispatch, nearness after home.
    named, near, held = ep_size, ep_size * (top_k + 1), 2 * ep_size * (top_k + 1)
    while left > 0:
        best, best_score = -1, -1
        for k in range(top_k):
            if served[k] >= 0:
                continue
            expert = experts[k]
            for position in range(copies.num_holders[expert]):
                rank = copies.holders[expert, position]
                if score[rank] == 0:
                    behind = rank - home
                    score[rank] = ep_size - behind if behind >= 0 else -behind
                    if node[rank] == node[home]:
                        score[rank] += near
                score[rank] += held
                if rank == copies.dispatch[home, expert]:
                    score[rank] += named
                if score[rank] > best_score:
                    best, best_score = rank, score[rank]
        for k in range(top_k):
            if served[k] >= 0:
                continue
            expert = experts[k]
            for position in range(copies.num_holders[expert]):
                rank = copies.holders[expert, position]
                score[rank] = 0
                if rank == best:
                    served[k] = best
                    left -= 1


@compiled
def copies_of(home: int, served: NDArray[np.int16], node: NDArray[np.int32], surcharge: float) -> float:
    """What one token costs: the remote ranks among `served`, and `surcharge` per other node."""
    cost = 0.0
    for k in range(len(served)):
        rank = served[k]
        if rank == home:
            continue
        new_rank, new_node = True, node[rank] != node[home]
        for before in range(k):
            if served[before] == rank:
                new_rank = False
                break
            if node[served[before]] == node[rank]:
                new_node = False
        if new_rank:
            cost += 1.0
            if new_node:
                cost += surcharge
    return cost


@compiled
def serve_items(
    items: Items,
    cover: bool,
    copies: Copies,
    network: Network,
    served: NDArray[np.int16],
    cost: NDArray[np.float64],
    load: NDArray[np.float64],
) -> float:
    """The cost of all items; writes served [N, K] and each item's weighted cost [N], adds pairs to load [R]."""
    score = np.zeros(len(network.node), dtype=np.int64)
    total = 0.0
    for t in range(len(items.experts)):
        home = items.home[t]
        serve_set(items.experts[t], home, cover, copies, network.node, score, served[t])
        cost[t] = items.weight[t] * copies_of(home, served[t], network.node, network.surcharge)
        total += cost[t]
        for k in range(served.shape[1]):
            load[served[t, k]] += items.weight[t]
    return total


@compiled
def costs_by_home(sets: NDArray[np.int32], cover: bool, copies: Copies, network: Network) -> NDArray[np.float32]:
    """float32 [S, R]: what a token of each set, int32 [S, K], costs when it starts on each rank.

    Under `cover`, homes on one node that hold none of a set's experts differ in ties at most: one stands for all.
    """
    ep_size, top_k = len(network.node), sets.shape[1]
    if cover and word_width(top_k, ep_size):
        return _costs_by_words(sets, copies, network)
    node, surcharge = network.node, network.surcharge
    holders, num_holders = copies.holders, copies.num_holders
    held, marks = np.zeros((1, ep_size), dtype=np.uint32), np.zeros((1, mark_words(ep_size)), dtype=np.int64)
    ranks, serves = np.zeros(ep_size + 1, dtype=np.int64), np.zeros(ep_size + 1, dtype=np.int64)
    score, served = np.zeros(ep_size, dtype=np.int64), np.zeros((1, top_k), dtype=np.int16)
    tie = ties_of(node)
    stands_for = np.zeros(node.max() + 1, dtype=np.int64)
    cost = np.zeros((len(sets), ep_size), dtype=np.float32)
    for s in range(len(sets)):
        if not cover:
            for home in range(ep_size):
                serve_set(sets[s], home, False, copies, node, score, served[0])
                cost[s, home] = copies_of(home, served[0], node, surcharge)
            continue
        held[:], marks[:] = 0, 0
        note_holders(sets, s, holders, num_holders, held, marks, 0)
        stands_for[:] = -1
        for home in range(ep_size):
            other = stands_for[node[home]]
            if held[0, home] == 0 and other >= 0:
                cost[s, home] = cost[s, other]
                continue
            found = find_cover(held, marks, 0, home, top_k, tie, ranks, serves, served, 0)
            cost[s, home] = cost_of_cover(home, node, surcharge, served, 0, found)
            if held[0, home] == 0:
                stands_for[node[home]] = home
    return cost


@compiled
def _costs_by_words(sets: NDArray[np.int32], copies: Copies, network: Network) -> NDArray[np.float32]:
    """The same under `cover` where a token's word says who holds its experts."""
    ep_size, surcharge, width = len(network.node), network.surcharge, word_width(sets.shape[1], len(network.node))
    near = near_words(network.node, width)
    full = np.int64((1 << sets.shape[1]) - 1)
    held, marks = np.zeros((1, ep_size), dtype=np.uint32), np.zeros((1, 1), dtype=np.int64)
    cost = np.empty((len(sets), ep_size), dtype=np.float32)
    for s in range(len(sets)):
        held[:] = 0
        note_holders(sets, s, copies.holders, copies.num_holders, held, marks, 0)
        word = word_of(held, 0, width)
        for home in range(ep_size):
            cost[s, home] = cost_of_word(word, np.int64(home), full, near, surcharge, width)
    return cost


@compiled
def overload(load: NDArray[np.float64], shift: NDArray[np.float64], network: Network, ceiling: float) -> float:
    """Pairs per unit of speed above `ceiling`, summed over ranks, after adding `shift` [R] to `load` [R]."""
    over = 0.0
    for rank in range(len(load)):
        over += max(0.0, (load[rank] + shift[rank]) / network.speed[rank] - ceiling)
    return over
