"""Tabu search by swaps on the exact remote-copy objective, one copy of each expert, under the load cap.

    cost(p) = sum over expert sets s of the sum, over the ranks r that p touches for s, of price[s, r]

where price[s, r] is what a copy to r costs the tokens of s, all together: fewer tokens start elsewhere, dearer links. A
swap's effect is known at any time from sums that a swap changes only through the sets that hold one of the two
experts, so a step costs a share of about 2K/E of the sets, and no set is looked at to choose it.

Experts numbered E and above are empty places: swapping with one moves an expert.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.expert_sets import rows_by_expert

# What a pair above the cap counts, in copies: the first lets a search pass through overloads, the others end them.
OVERLOAD_PRICES = (3.0, 30.0, 300.0)


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
    placed = rank_of_place.astype(np.int32)
    cost = _search(
        items,
        price,
        offsets,
        rows,
        cap.load,
        cap.speed,
        cap.ceiling,
        overload_price,
        kind,
        placed,
        steps,
        patience,
        seed,
    )
    return placed, cost


@compiled
def _add_item(
    sign: float,
    item: NDArray[np.int32],
    price: NDArray[np.float64],
    rank_of_place: NDArray[np.int32],
    count: NDArray[np.uint8],
    leave: NDArray[np.float64],
    shared: NDArray[np.float64],
    together: NDArray[np.float64],
) -> None:
    """Add one item's part to the three sums; price: float64 [R], its row of prices.

    leave[e]: saved when e leaves its rank (e is the item's only expert there). shared[e, r]: what arriving at r would
    have cost, were the item not there already. together[e, f]: saved twice when e and f change places, so not saved.
    """
    top_k = len(item)
    for k in range(top_k):
        expert = item[k]
        rank = rank_of_place[expert]
        alone = sign * price[rank] if count[rank] == 1 else 0.0
        leave[expert] += alone
        for m in range(top_k):
            other = item[m]
            other_rank = rank_of_place[other]
            seen = False
            for before in range(m):
                if rank_of_place[item[before]] == other_rank:
                    seen = True
            if not seen:
                shared[expert, other_rank] += sign * price[other_rank]
            if other_rank != rank:
                together[expert, other] += alone + (sign * price[other_rank] if count[other_rank] == 1 else 0.0)


@compiled
def _search(
    items: NDArray[np.int32],
    price: NDArray[np.float64],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int32],
    load: NDArray[np.float64],
    speed: NDArray[np.float64],
    ceiling: float,
    overload_price: float,
    kind: NDArray[np.int32],
    rank_of_place: NDArray[np.int32],
    steps: int,
    patience: int,
    seed: int,
) -> float:
    """Search in place; returns the best cost with the overload price."""
    np.random.seed(seed)
    num_items, top_k = items.shape
    ep_size, num_places = price.shape[1], len(rank_of_place)
    count = np.zeros((num_items, ep_size), dtype=np.uint8)
    leave = np.zeros(num_places)
    shared = np.zeros((num_places, ep_size))
    together = np.zeros((num_places, num_places))
    arrive = np.zeros((num_places, ep_size))
    cost = 0.0
    for t in range(num_items):
        for k in range(top_k):
            rank = rank_of_place[items[t, k]]
            if count[t, rank] == 0:
                cost += price[t, rank]
            count[t, rank] += 1
            for r in range(ep_size):
                arrive[items[t, k], r] += price[t, r]
        _add_item(1.0, items[t], price[t], rank_of_place, count[t], leave, shared, together)
    filled = np.zeros(ep_size)
    for e in range(num_places):
        filled[rank_of_place[e]] += load[e] / speed[rank_of_place[e]]
    for r in range(ep_size):
        cost += overload_price * max(0.0, filled[r] - ceiling)
    best_cost, best = cost, rank_of_place.copy()
    tabu_until = np.zeros(num_places, dtype=np.int64)
    tenure = max(3, min(10, num_places // 6))
    stale = 0
    for step in range(steps):
        gain, first, second = np.inf, -1, -1
        for a in range(num_places):
            i = rank_of_place[a]
            for b in range(a):
                j = rank_of_place[b]
                if i == j or kind[a] != kind[b] or (load[a] == 0.0 and load[b] == 0.0):
                    continue
                moved = load[b] - load[a]
                over = max(0.0, filled[i] + moved / speed[i] - ceiling) - max(0.0, filled[i] - ceiling)
                over += max(0.0, filled[j] - moved / speed[j] - ceiling) - max(0.0, filled[j] - ceiling)
                change = arrive[a, j] - shared[a, j] - leave[a] + arrive[b, i] - shared[b, i] - leave[b]
                change += together[a, b] + overload_price * over
                if change >= gain:
                    continue
                if (tabu_until[a] > step or tabu_until[b] > step) and cost + change >= best_cost - 1e-9:
                    continue
                gain, first, second = change, a, b
        if first < 0 or (patience == 0 and gain >= -1e-9):
            break
        i, j = rank_of_place[first], rank_of_place[second]
        for turn in range(2):
            if turn == 1:
                rank_of_place[first], rank_of_place[second] = j, i
                for position in range(offsets[first], offsets[first + 1]):
                    count[rows[position], i] -= 1
                    count[rows[position], j] += 1
                for position in range(offsets[second], offsets[second + 1]):
                    count[rows[position], j] -= 1
                    count[rows[position], i] += 1
            sign = 2.0 * turn - 1.0
            for which in range(2):
                moving = first if which == 0 else second
                for position in range(offsets[moving], offsets[moving + 1]):
                    t = rows[position]
                    done = False
                    if which == 1:
                        for k in range(top_k):
                            if items[t, k] == first:
                                done = True
                    if not done:
                        _add_item(sign, items[t], price[t], rank_of_place, count[t], leave, shared, together)
        moved = load[second] - load[first]
        filled[i] += moved / speed[i]
        filled[j] -= moved / speed[j]
        cost += gain
        tabu_until[first] = step + 1 + tenure + np.random.randint(0, tenure)
        tabu_until[second] = step + 1 + tenure + np.random.randint(0, tenure)
        stale += 1
        if cost < best_cost - 1e-9:
            best_cost, stale = cost, 0
            best[:] = rank_of_place
        if stale > patience:
            break
    rank_of_place[:] = best
    return best_cost
