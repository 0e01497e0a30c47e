"""Tabu search by swaps on the exact remote-copy objective, one copy of each expert, under the load cap.

    cost(p) = sum over expert sets s of the sum, over the ranks r that p touches for s, of price[s, r]

where price[s, r] is what a copy to r costs the tokens of s, all together: fewer tokens start elsewhere, dearer links. A
swap's effect is known at any time from sums that a swap changes only through the sets that hold one of the two
experts, in K steps each, so a swap costs a share of about 2K/E of the sets, and no set is looked at to choose it.

Experts numbered E and above are empty places: swapping with one moves an expert.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.expert_sets import rows_by_expert

# What a pair above the cap counts, in copies: the first lets a search pass through overloads, the others end them.
OVERLOAD_PRICES = (3.0, 30.0, 300.0)
# Past this many places a step looks at the swaps of as many random ones, so that its cost grows with P, not its square.
_CANDIDATES = 64
_MIN_CHANGE = 1e-9


@dataclass(frozen=True, kw_only=True)
class LoadCap:
    """load: float64 [P], each place's pairs, 0 for empty ones; speed: float64 [R]; ceiling: pairs / speed allowed."""

    load: NDArray[np.float64]
    speed: NDArray[np.float64]
    ceiling: float

    def is_kept(self, rank_of_place: NDArray[np.int32]) -> bool:
        """Whether no rank is above the ceiling."""
        filled = np.bincount(rank_of_place, weights=self.load, minlength=len(self.speed)) / self.speed
        return bool((filled <= self.ceiling * (1 + 1e-9)).all())


class _Sets(NamedTuple):
    """items: int32 [S, K] and their price: float64 [S, R]; place p is in `rows[offsets[p] : offsets[p + 1]]`."""

    items: NDArray[np.int32]
    price: NDArray[np.float64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]


class _Loads(NamedTuple):
    """load: float64 [P]; speed, filled: float64 [R], filled in pairs over speed; ceiling of filled; price above it."""

    load: NDArray[np.float64]
    speed: NDArray[np.float64]
    filled: NDArray[np.float64]
    ceiling: float
    overload_price: float


class _Sums(NamedTuple):
    """What moves change, summed over the sets of a place. leave: float64 [P], saved when p leaves its rank, where it
    is alone; arrive: float64 [P, R], what arriving at r costs, where no other place is; alone: float64 [P, P], saved
    when p leaves by the sets that hold q too: not saved when p and q change places.
    """

    leave: NDArray[np.float64]
    arrive: NDArray[np.float64]
    alone: NDArray[np.float64]


def swap_search(
    items: NDArray[np.int32],
    price: NDArray[np.float64],
    cap: LoadCap,
    rank_of_place: NDArray[np.int32],
    *,
    kind: NDArray[np.int32],
    overload_price: float,
    steps: int,
    patience: int,
    seed: int,
) -> tuple[NDArray[np.int32], float]:
    """The best placement found, int32 [P], from `rank_of_place` on, and its cost with the price of any overload.

    items: int32 [S, K], expert sets; price: float64 [S, R]; kind: int32 [P], only places of one
    kind are exchanged. Stops after `steps` swaps, or `patience` swaps without
    a better placement (0: at the first optimum).
    """
    offsets, rows = rows_by_expert(items, len(rank_of_place))
    sets = _Sets(items, price, offsets, rows)
    placed = rank_of_place.astype(np.int32)
    filled = np.bincount(placed, weights=cap.load, minlength=len(cap.speed)) / cap.speed
    loads = _Loads(cap.load, cap.speed, filled, cap.ceiling, overload_price)
    return placed, _search(sets, loads, kind, placed, steps, patience, seed)


@compiled
def _search(
    sets: _Sets,
    loads: _Loads,
    kind: NDArray[np.int32],
    rank_of_place: NDArray[np.int32],
    steps: int,
    patience: int,
    seed: int,
) -> float:
    """Search in place; returns the best cost with the overload price."""
    np.random.seed(seed)
    num_places, ep_size = len(rank_of_place), len(loads.speed)
    sums = _Sums(np.zeros(num_places), np.zeros((num_places, ep_size)), np.zeros((num_places, num_places)))
    cost = _sum_up(sets, rank_of_place, sums)
    for r in range(ep_size):
        cost += loads.overload_price * max(0.0, loads.filled[r] - loads.ceiling)
    best_cost, best = cost, rank_of_place.copy()
    tabu_until = np.zeros(num_places, dtype=np.int64)
    tenure = max(3, min(10, num_places // 6))
    tried = np.arange(num_places)
    stale = 0
    for step in range(steps):
        if num_places > _CANDIDATES:
            _draw_first(tried, _CANDIDATES)
        needed = best_cost - _MIN_CHANGE - cost
        first, second, gain = _best_swap(
            tried[:_CANDIDATES], sums, loads, kind, rank_of_place, tabu_until, step, needed
        )
        if first < 0 or (patience == 0 and gain >= -_MIN_CHANGE):
            break
        i, j = rank_of_place[first], rank_of_place[second]
        _move(first, j, sets, rank_of_place, sums)
        _move(second, i, sets, rank_of_place, sums)
        moved = loads.load[second] - loads.load[first]
        loads.filled[i] += moved / loads.speed[i]
        loads.filled[j] -= moved / loads.speed[j]
        cost += gain
        tabu_until[first] = step + 1 + tenure + np.random.randint(0, tenure)
        tabu_until[second] = step + 1 + tenure + np.random.randint(0, tenure)
        stale += 1
        if cost < best_cost - _MIN_CHANGE:
            best_cost, stale = cost, 0
            best[:] = rank_of_place
        if stale > patience:
            break
    rank_of_place[:] = best
    return best_cost


@compiled
def _sum_up(sets: _Sets, rank_of_place: NDArray[np.int32], sums: _Sums) -> float:
    """Add all sets to sums of zeros; the cost of the placement."""
    items, price, leave, arrive, alone = sets.items, sets.price, sums.leave, sums.arrive, sums.alone
    top_k, ep_size = items.shape[1], price.shape[1]
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
    return cost


@compiled
def _add_alone(
    place: int, items: NDArray[np.int32], t: int, price: float, leave: NDArray[np.float64], alone: NDArray[np.float64]
) -> None:
    """Note that `place` is the only one of item t on its rank."""
    leave[place] += price
    for k in range(items.shape[1]):
        alone[place, items[t, k]] += price


@compiled
def _move(place: int, to: int, sets: _Sets, rank_of_place: NDArray[np.int32], sums: _Sums) -> None:
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
def _best_swap(
    tried: NDArray[np.int64],
    sums: _Sums,
    loads: _Loads,
    kind: NDArray[np.int32],
    rank_of_place: NDArray[np.int32],
    tabu_until: NDArray[np.int64],
    step: int,
    needed: float,
) -> tuple[int, int, float]:
    """The swap of one of `tried` that changes the cost least or lowers it most, and by how much; -1 where there is
    none. A swap of a place that is tabu must change it by less than `needed`.
    """
    arrive, leave, alone = sums.arrive, sums.leave, sums.alone
    load, filled, ceiling = loads.load, loads.filled, loads.ceiling
    gain, first, second = np.inf, -1, -1
    for a in tried:
        i = rank_of_place[a]
        for b in range(len(rank_of_place)):
            j = rank_of_place[b]
            if i == j or kind[a] != kind[b]:
                continue
            change = arrive[a, j] - leave[a] + arrive[b, i] - leave[b] + alone[a, b] + alone[b, a]
            if change >= gain and filled[i] <= ceiling and filled[j] <= ceiling:
                continue
            change += loads.overload_price * _more_overload(load[b] - load[a], i, j, filled, loads.speed, ceiling)
            if change >= gain or (load[a] == 0.0 and load[b] == 0.0):
                continue
            if (tabu_until[a] > step or tabu_until[b] > step) and change >= needed:
                continue
            gain, first, second = change, a, b
    return first, second, gain


@compiled
def _more_overload(
    moved: float, i: int, j: int, filled: NDArray[np.float64], speed: NDArray[np.float64], ceiling: float
) -> float:
    """How much load over speed comes above the ceiling when `moved` pairs go from rank j to rank i."""
    more_on_i = max(0.0, filled[i] + moved / speed[i] - ceiling) - max(0.0, filled[i] - ceiling)
    more_on_j = max(0.0, filled[j] - moved / speed[j] - ceiling) - max(0.0, filled[j] - ceiling)
    return float(more_on_i + more_on_j)


@compiled
def _draw_first(values: NDArray[np.int64], count: int) -> None:
    """Shuffle, so that the first `count` are a random draw."""
    for position in range(count):
        other = np.random.randint(position, len(values))
        values[position], values[other] = values[other], values[position]
