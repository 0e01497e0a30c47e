"""A rank's cost by the part of each expert set that it holds, as the counts that `mask_search.py` works on.

A set's experts are numbered 0 .. K - 1, and a *mask* says which of them a rank holds. What a rank pays is a sum over
sets of any function of the mask, cost(s, m). As a polynomial in the experts that it holds,

    sum over s of cost(s, S and s)  =  constant + sum c1(e) + sum c2(e, f) + sum c3(e, f, x) + sum c4(e, f, x, y),

whose coefficients are differences of costs (Moebius inversion over the masks).

How little the rest can cost is bounded expert by expert. With the part a of a set chosen, any further part m changes
its cost by at least the sum over e in m of

    share(a, e)  =  w(e) * min over parts m with e, outside a, of (cost(a and m) - cost(a)) / (sum of w over m),

for any weights w > 0, so the sum of the shares of the experts still to choose bounds what they cost. A share depends on
what is chosen of the set alone, so it is kept by the same inversion, over a. Weights that grow with how often an expert
is used bound best: the experts that look cheap anyway then take what parts save, and those that do not stay out.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled

LARGEST_SET = 4
# Weights of shares, from that of an expert without tokens up to that and the most used one's.
_LEAST_WEIGHT, _WEIGHTS = 5, 100
# Counts of four experts at once take E ** 4 numbers, twice.
_COUNTS_BYTES = 1 << 23


class Counts(NamedTuple):
    """What an expert adds by those that are chosen: one: int32 [E], two: [E, E], three: [E, E, E], four: [E, E, E, E].

    The last index is the expert, those before it are chosen, in any order; entries with an expert twice are 0.
    """

    one: NDArray[np.int32]
    two: NDArray[np.int32]
    three: NDArray[np.int32]
    four: NDArray[np.int32]


class MaskCosts(NamedTuple):
    """constant: what a rank without experts pays; exact: what each choice adds; share: at least what it adds."""

    constant: int
    exact: Counts
    share: Counts


def can_count(num_experts: int, top_k: int) -> bool:
    """Whether sets are small enough, and experts few enough, for these counts."""
    return top_k <= LARGEST_SET and 4 * num_experts**4 <= _COUNTS_BYTES


def count_masks(sets: NDArray[np.int32], cost: NDArray[np.int32], load: NDArray[np.float64]) -> MaskCosts:
    """The counts of sets, int32 [S, K], whose masks cost int32 [S, 2 ** K]; load: float64 [E], how often experts are
    used.
    """
    weight = _LEAST_WEIGHT + np.rint(_WEIGHTS * (load / max(float(load.max()), 1.0)) ** 2).astype(np.int64)
    exact, share = _empty(len(load)), _empty(len(load))
    _count(sets, cost, weight, exact, share)
    return MaskCosts(int(cost[:, 0].sum(dtype=np.int64)), exact, share)


def _empty(num_experts: int) -> Counts:
    one, two, three, four = (np.zeros((num_experts,) * size, dtype=np.int32) for size in range(1, LARGEST_SET + 1))
    return Counts(one, two, three, four)


@compiled
def _count(
    sets: NDArray[np.int32], cost: NDArray[np.int32], weight: NDArray[np.int64], exact: Counts, share: Counts
) -> None:
    K = sets.shape[1]
    change = np.zeros((1 << K, K), dtype=np.int64)
    least = np.zeros((1 << K, K), dtype=np.int64)
    for s in range(len(sets)):
        _changes(cost[s], weight[sets[s]], change, least)
        for k in range(K):
            for mask in range(1 << K):
                if mask >> k & 1:
                    for e in range(K):
                        change[mask, e] -= change[mask ^ 1 << k, e]
                        least[mask, e] -= least[mask ^ 1 << k, e]
        _add_in_every_order(sets[s], change, exact)
        _add_in_every_order(sets[s], least, share)


@compiled
def _changes(
    cost: NDArray[np.int32], weight: NDArray[np.int64], change: NDArray[np.int64], least: NDArray[np.int64]
) -> None:
    """Write what expert e adds to part a of one set, and its share, rounded down: both [2 ** K, K], 0 for e in a."""
    full, K = len(cost) - 1, change.shape[1]
    for chosen in range(full + 1):
        for e in range(K):
            change[chosen, e] = least[chosen, e] = 0
            if chosen >> e & 1:
                continue
            change[chosen, e] = np.int64(cost[chosen | 1 << e]) - cost[chosen]
            rest = full ^ chosen ^ 1 << e
            others, lowest = rest, np.int64(1) << 62
            while True:
                part = others | 1 << e
                whole = 0
                for k in range(K):
                    if part >> k & 1:
                        whole += weight[k]
                lowest = min(lowest, (np.int64(cost[chosen | part]) - cost[chosen]) * weight[e] // whole)
                if others == 0:
                    break
                others = (others - 1) & rest
            least[chosen, e] = lowest


@compiled
def _add_in_every_order(experts: NDArray[np.int32], term: NDArray[np.int64], counts: Counts) -> None:
    """Add one set's terms [2 ** K, K]: of each mask that is chosen, for each expert beside it."""
    K = len(experts)
    for e in range(K):
        expert = experts[e]
        counts.one[expert] += term[0, e]
        for i in range(K):
            if i == e:
                continue
            first = experts[i]
            counts.two[first, expert] += term[1 << i, e]
            for j in range(K):
                if j in (e, i):
                    continue
                second = experts[j]
                counts.three[first, second, expert] += term[1 << i | 1 << j, e]
                for k in range(K):
                    if k not in (e, i, j):
                        counts.four[first, second, experts[k], expert] += term[1 << i | 1 << j | 1 << k, e]


@compiled
def count_chosen(counts: Counts, chosen: NDArray[np.int64], expert: int, adds: NDArray[np.int32]) -> None:
    """Bring adds [E], what experts add beyond `chosen`, to what they add when `expert` is chosen too."""
    E = len(adds)
    row = counts.two[expert]
    for e in range(E):
        adds[e] += row[e]
    for i in range(len(chosen)):
        row = counts.three[expert, chosen[i]]
        for e in range(E):
            adds[e] += row[e]
        for j in range(i):
            row = counts.four[expert, chosen[i], chosen[j]]
            for e in range(E):
                adds[e] += row[e]


@compiled
def pair_adds(counts: Counts, chosen: NDArray[np.int64], first: int, second: int) -> np.int64:
    """What `second` adds more with `first` than without, beyond `chosen`."""
    total = np.int64(counts.two[first, second])
    for i in range(len(chosen)):
        total += counts.three[first, chosen[i], second]
        for j in range(i):
            total += counts.four[first, chosen[i], chosen[j], second]
    return total
