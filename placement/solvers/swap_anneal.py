"""Simulated annealing by swaps on the exact remote-copy objective: a start that tabu search then ends.

Where experts are many, swap searches from random placements end far apart. Annealing costs as much as a few of them,
since a proposal is priced without looking at a set, and ends nearer to the best (S. Kirkpatrick, C. D. Gelatt,
M. P. Vecchi, *Optimization by simulated annealing*, Science 220, 1983).
"""

import math

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.stand_for_all import stand_for_all
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES, LoadCap
from specmoe.placement.solvers.swap_sums import Loads, PricedSets, change_of, priced_sets, sum_up, swap_places

# The first temperature and the last one, in a placement's cost over its places.
_HOT, _COLD = 0.25, 0.02
# So many sets stand for all: half as many are noise that shows in the end.
_ANNEALED_SETS = 25_000


def swap_anneal(
    items: NDArray[np.int32],
    price: NDArray[np.float64],
    cap: LoadCap,
    rank_of_place: NDArray[np.int32],
    *,
    kind: NDArray[np.int32],
    proposals: int,
    seed: int,
) -> NDArray[np.int32]:
    """Where so many proposals of random swaps lead from `rank_of_place`, int32 [P]; arguments as in `swap_search`.

    Little is left of where they begin. The load cap is a price of what is above it, which the end may be.
    """
    items, price = _chosen(items, price)
    placed = rank_of_place.astype(np.int32)
    sets, loads = priced_sets(items, price, len(placed)), cap.loads(placed, OVERLOAD_PRICES[0])
    _anneal(sets, loads, kind, placed, proposals, seed)
    return placed


def _chosen(items: NDArray[np.int32], price: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The sets that cost anything or, of too many, those that stand for all."""
    costly = price.any(axis=1)
    items, price = items[costly], price[costly]
    total = price.sum(axis=1)
    chosen, standing_for = stand_for_all(total, _ANNEALED_SETS)
    return items[chosen], price[chosen] * (standing_for / total[chosen])[:, None]


@compiled
def _anneal(
    sets: PricedSets,
    loads: Loads,
    kind: NDArray[np.int32],
    rank_of_place: NDArray[np.int32],
    proposals: int,
    seed: int,
) -> None:
    """Anneal in place; the temperature falls geometrically."""
    np.random.seed(seed)
    num_places = len(rank_of_place)
    sums, cost = sum_up(sets, rank_of_place)
    temperature = _HOT * cost / num_places
    cooler = (_COLD / _HOT) ** (1.0 / proposals)
    for _ in range(proposals):
        temperature *= cooler
        a, b = np.random.randint(num_places), np.random.randint(num_places)
        if rank_of_place[a] == rank_of_place[b] or kind[a] != kind[b]:
            continue
        change = change_of(a, b, sums, loads, rank_of_place)
        if change <= 0.0 or change < -temperature * math.log(1.0 - np.random.random()):
            swap_places(a, b, sets, loads, rank_of_place, sums)
