"""What swaps of places change, kept as sums over expert sets so that no set is looked at to price a swap."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.expert_sets import rows_by_expert


class PricedSets(NamedTuple):
    """items: int32 [S, K] and their price: float64 [S, R]; place p is in `rows[offsets[p] : offsets[p + 1]]`."""

    items: NDArray[np.int32]
    price: NDArray[np.float64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]


class Loads(NamedTuple):
    """load: float64 [P]; speed, filled: float64 [R], filled in pairs over speed; ceiling of filled; price above it."""

    load: NDArray[np.float64]
    speed: NDArray[np.float64]
    filled: NDArray[np.float64]
    ceiling: float
    overload_price: float


class SwapSums(NamedTuple):
    """What moves change, summed over the sets of a place. leave: float64 [P], saved when p leaves its rank, where it
    is alone; arrive: float64 [P, R], what arriving at r costs, where no other place is; alone: float64 [P, P], saved
    when p leaves by the sets that hold q too: not saved when p and q change places.
    """

    leave: NDArray[np.float64]
    arrive: NDArray[np.float64]
    alone: NDArray[np.float64]


def priced_sets(items: NDArray[np.int32], price: NDArray[np.float64], num_places: int) -> PricedSets:
    """The sets, and which of them hold each place."""
    offsets, rows = rows_by_expert(items, num_places)
    return PricedSets(items, price, offsets, rows)


@compiled
def sum_up(sets: PricedSets, rank_of_place: NDArray[np.int32]) -> tuple[SwapSums, float]:
    """The sums of a placement, and its cost."""
    items, price = sets.items, sets.price
    top_k, ep_size, num_places = items.shape[1], price.shape[1], len(rank_of_place)
    leave, arrive = np.zeros(num_places), np.zeros((num_places, ep_size))
    alone = np.zeros((num_places, num_places))
    count = np.zeros(ep_size, dtype=np.int64)
    cost = 0.0
    for t in range(len(items)):
        for k in range(top_k):
            count[rank_of_place[items[t, k]]] += 1
        for k in range(top_k):
            place = items[t, k]
            rank = rank_of_place[place]
            cost += price[t, rank] / count[rank]
            if count[rank] == 1:
                _add_alone(place, items, t, price[t, rank], leave, alone)
            for r in range(ep_size):
                if count[r] == 0:
                    arrive[place, r] += price[t, r]
        for k in range(top_k):
            count[rank_of_place[items[t, k]]] = 0
    return SwapSums(leave, arrive, alone), cost


@compiled
def _add_alone(
    place: int, items: NDArray[np.int32], t: int, price: float, leave: NDArray[np.float64], alone: NDArray[np.float64]
) -> None:
    """Note that `place` is the only one of item t on its rank."""
    leave[place] += price
    for k in range(items.shape[1]):
        alone[place, items[t, k]] += price


@compiled
def move_place(place: int, to: int, sets: PricedSets, rank_of_place: NDArray[np.int32], sums: SwapSums) -> None:
    """Move one place to another rank."""
    # Arrays by themselves: taken out of a tuple in a loop, each access would count references.
    items, price, rows = sets.items, sets.price, sets.rows
    leave, arrive, alone = sums.leave, sums.arrive, sums.alone
    source, top_k = rank_of_place[place], items.shape[1]
    for position in range(sets.offsets[place], sets.offsets[place + 1]):
        t = rows[position]
        left, met, other_left, other_met = 0, 0, -1, -1
        for k in range(top_k):
            other = items[t, k]
            rank = rank_of_place[other]
            if rank == source and other != place:
                left += 1
                other_left = other
            elif rank == to:
                met += 1
                other_met = other
        # The place stops being alone here, or one that stays behind begins to be; there it is the other way round.
        if left < 2:
            _add_alone(place if left == 0 else other_left, items, t, (2 * left - 1) * price[t, source], leave, alone)
        if met < 2:
            _add_alone(place if met == 0 else other_met, items, t, (1 - 2 * met) * price[t, to], leave, alone)
        if left == 0:
            for k in range(top_k):
                arrive[items[t, k], source] += price[t, source]
        if met == 0:
            for k in range(top_k):
                arrive[items[t, k], to] -= price[t, to]
    rank_of_place[place] = to


@compiled
def change_of(a: int, b: int, sums: SwapSums, loads: Loads, rank_of_place: NDArray[np.int32]) -> float:
    """How much a swap changes the cost, with the overload price."""
    i, j = rank_of_place[a], rank_of_place[b]
    change = sums.arrive[a, j] - sums.leave[a] + sums.arrive[b, i] - sums.leave[b] + sums.alone[a, b] + sums.alone[b, a]
    moved = loads.load[b] - loads.load[a]
    change += loads.overload_price * more_overload(moved, i, j, loads.filled, loads.speed, loads.ceiling)
    return float(change)


@compiled
def swap_places(
    a: int, b: int, sets: PricedSets, loads: Loads, rank_of_place: NDArray[np.int32], sums: SwapSums
) -> None:
    """Let two places change ranks."""
    i, j = rank_of_place[a], rank_of_place[b]
    move_place(a, j, sets, rank_of_place, sums)
    move_place(b, i, sets, rank_of_place, sums)
    moved = loads.load[b] - loads.load[a]
    loads.filled[i] += moved / loads.speed[i]
    loads.filled[j] -= moved / loads.speed[j]


@compiled
def more_overload(
    moved: float, i: int, j: int, filled: NDArray[np.float64], speed: NDArray[np.float64], ceiling: float
) -> float:
    """How much load over speed comes above the ceiling when `moved` pairs go from rank j to rank i."""
    more_on_i = max(0.0, filled[i] + moved / speed[i] - ceiling) - max(0.0, filled[i] - ceiling)
    more_on_j = max(0.0, filled[j] - moved / speed[j] - ceiling) - max(0.0, filled[j] - ceiling)
    return float(more_on_i + more_on_j)
