"""Tabu search by swaps on the exact remote-copy objective, one copy of each expert, under the load cap.

    cost(p) = sum over expert sets s of the sum, over the ranks r that p touches for s, of price[s, r]

where price[s, r] is what a copy to r costs the tokens of s, all together: fewer tokens start elsewhere, dearer links. A
swap's effect is known at any time from sums that a swap changes only through the sets that hold one of the two
experts, in K steps each, so a swap costs a share of about 2K/E of the sets, and no set is looked at to choose it.

Experts numbered E and above are empty places: swapping with one moves an expert.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.swap_sums import (
    Loads,
    PricedSets,
    SwapSums,
    change_of,
    more_overload,
    move_place,
    priced_sets,
    sum_up,
    swap_places,
)

# What a pair above the cap counts, in copies: the first lets a search pass through overloads, the others end them.
OVERLOAD_PRICES = (3.0, 30.0, 300.0)
# Past this many places a step looks at the swaps of as many random ones, so that its cost grows with P, not its square.
_CANDIDATES = 64
_MIN_CHANGE = 1e-9
# Of the places one in so many is swapped with another one when a search begins anew.
_KICKED = 16


@dataclass(frozen=True, kw_only=True)
class LoadCap:
    """load: float64 [P], each place's pairs, 0 for empty ones; speed: float64 [R]; ceiling: pairs / speed allowed."""

    load: NDArray[np.float64]
    speed: NDArray[np.float64]
    ceiling: float

    def is_kept(self, rank_of_place: NDArray[np.int32]) -> bool:
        """Whether no rank is above the ceiling."""
        return bool((self.filled(rank_of_place) <= self.ceiling * (1 + 1e-9)).all())

    def filled(self, rank_of_place: NDArray[np.int32]) -> NDArray[np.float64]:
        """float64 [R]: each rank's pairs over its speed."""
        return np.bincount(rank_of_place, weights=self.load, minlength=len(self.speed)) / self.speed

    def loads(self, rank_of_place: NDArray[np.int32], overload_price: float) -> Loads:
        """The loads of a placement as searches change them."""
        return Loads(self.load, self.speed, self.filled(rank_of_place), self.ceiling, overload_price)


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
    kicks: int,
    seed: int,
) -> tuple[NDArray[np.int32], float]:
    """The best placement found, int32 [P], from `rank_of_place` on, and its cost with the price of any overload.

    items: int32 [S, K], expert sets; price: float64 [S, R]; kind: int32 [P], only places of one
    kind are exchanged. Stops after `steps` swaps, or `patience` swaps without
    a better placement (0: at the first optimum). Then begins anew, `kicks` times, where some of the places of the best
    one have changed ranks: that finds better ones than as many random starts, the more so the more experts there are.
    """
    placed = rank_of_place.astype(np.int32)
    sets, loads = priced_sets(items, price, len(placed)), cap.loads(placed, overload_price)
    return placed, _search(sets, loads, kind, placed, steps, patience, kicks, seed)


@compiled
def _search(
    sets: PricedSets,
    loads: Loads,
    kind: NDArray[np.int32],
    rank_of_place: NDArray[np.int32],
    steps: int,
    patience: int,
    kicks: int,
    seed: int,
) -> float:
    """Search in place; returns the best cost with the overload price."""
    np.random.seed(seed)
    num_places = len(rank_of_place)
    sums, cost = sum_up(sets, rank_of_place)
    for r in range(len(loads.speed)):
        cost += loads.overload_price * max(0.0, loads.filled[r] - loads.ceiling)
    best_cost, best = cost, rank_of_place.copy()
    tabu_until = np.zeros(num_places, dtype=np.int64)
    tenure = max(3, min(10, num_places // 6))
    tried = np.arange(num_places)
    # The best since the search last began, and when that was.
    reached, stale, begun = cost, 0, 0
    for step in range(steps * (1 + kicks)):
        if num_places > _CANDIDATES:
            _draw_first(tried, _CANDIDATES)
        needed = best_cost - _MIN_CHANGE - cost
        first, second, gain = _best_swap(
            tried[:_CANDIDATES], sums, loads, kind, rank_of_place, tabu_until, step, needed
        )
        is_over = first < 0 or (patience == 0 and gain >= -_MIN_CHANGE)
        if is_over or stale > patience or step - begun >= steps:
            if kicks == 0:
                break
            kicks -= 1
            stale, begun, tabu_until[:] = 0, step + 1, 0
            _return_to(best, sets, loads, rank_of_place, sums)
            cost = best_cost + _kick(max(2, num_places // _KICKED), sets, loads, kind, rank_of_place, sums)
            reached = cost
            continue
        cost += gain
        swap_places(first, second, sets, loads, rank_of_place, sums)
        tabu_until[first] = step + 1 + tenure + np.random.randint(0, tenure)
        tabu_until[second] = step + 1 + tenure + np.random.randint(0, tenure)
        stale += 1
        if cost < reached - _MIN_CHANGE:
            reached, stale = cost, 0
        if cost < best_cost - _MIN_CHANGE:
            best_cost = cost
            best[:] = rank_of_place
    rank_of_place[:] = best
    return best_cost


@compiled
def _return_to(
    best: NDArray[np.int32], sets: PricedSets, loads: Loads, rank_of_place: NDArray[np.int32], sums: SwapSums
) -> None:
    """Move every place to where `best` has it."""
    for place in range(len(best)):
        if rank_of_place[place] != best[place]:
            loads.filled[rank_of_place[place]] -= loads.load[place] / loads.speed[rank_of_place[place]]
            loads.filled[best[place]] += loads.load[place] / loads.speed[best[place]]
            move_place(place, best[place], sets, rank_of_place, sums)


@compiled
def _kick(
    swaps: int,
    sets: PricedSets,
    loads: Loads,
    kind: NDArray[np.int32],
    rank_of_place: NDArray[np.int32],
    sums: SwapSums,
) -> float:
    """Swap so many random pairs of places, as far as they may be; how much the cost changes."""
    change = 0.0
    for _ in range(swaps):
        a, b = np.random.randint(len(rank_of_place)), np.random.randint(len(rank_of_place))
        if rank_of_place[a] != rank_of_place[b] and kind[a] == kind[b]:
            change += change_of(a, b, sums, loads, rank_of_place)
            swap_places(a, b, sets, loads, rank_of_place, sums)
    return change


@compiled
def _best_swap(
    tried: NDArray[np.int64],
    sums: SwapSums,
    loads: Loads,
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
            change += loads.overload_price * more_overload(load[b] - load[a], i, j, filled, loads.speed, ceiling)
            if change >= gain or (load[a] == 0.0 and load[b] == 0.0):
                continue
            if (tabu_until[a] > step or tabu_until[b] > step) and change >= needed:
                continue
            gain, first, second = change, a, b
    return first, second, gain


@compiled
def _draw_first(values: NDArray[np.int64], count: int) -> None:
    """Shuffle, so that the first `count` are a random draw."""
    for position in range(count):
        other = np.random.randint(position, len(values))
        values[position], values[other] = values[other], values[position]
