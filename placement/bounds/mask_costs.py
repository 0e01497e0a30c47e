"""A rank's cost by the part of each expert set that it holds, as the counts that `mask_search.py` works on.

A set's experts are numbered 0 .. K - 1, and a *mask* says which of them a rank holds. What a rank pays is a sum over
sets of any function of the mask, cost(s, m). As a polynomial in the experts that it holds,

    sum over s of cost(s, S and s)  =  constant + sum c1(e) + sum c2(e, f) + sum c3(e, f, x) + sum c4(e, f, x, y),

whose coefficients are differences of costs (Moebius inversion over the masks).

How little the rest can cost is bounded by pairs. With the part a of a set chosen, single(e) what each expert adds to
it, a further part m changes its cost by at least the sum over e in m of single(e) and over pairs e, f in m of

    pair(a, e, f)  =  w(e, f) * min over parts m with e and f, outside a, of
                      (cost(a and m) - cost(a) - sum over m of single) / (sum of w over the pairs in m),

for any weights w > 0. A pair's term depends on what is chosen of the set alone, so it is kept by the same inversion,
over a. Weights that grow with how often experts are used bound best: the pairs that look cheap anyway then take what
larger parts save, and those that do not stay out. A pair's term is divided between its two by their weights as well.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled

LARGEST_SET = 4
# Weights of experts, from that of one without tokens up to that and the most used one's.
_LEAST_WEIGHT, _WEIGHTS = 5, 100
# Counts of four experts at once take E ** 4 numbers, twice for each kind of cost.
_COUNTS_BYTES = 1 << 23


class Counts(NamedTuple):
    """What an expert adds by those that are chosen, for L kinds of cost: one: int32 [L, E], two: [L, E, E], three: [L,
    E, E, E], four: [L, E, E, E, E].

    The last index is the expert, those before it are chosen, in any order; entries with an expert twice are 0.
    """

    one: NDArray[np.int32]
    two: NDArray[np.int32]
    three: NDArray[np.int32]
    four: NDArray[np.int32]


class PairCounts(NamedTuple):
    """How little two experts add together beyond what each adds, by those that are chosen, as in `Counts`. The last two
    indices are the pair: its term is divided, and what its first expert takes is here.
    """

    two: NDArray[np.int32]
    three: NDArray[np.int32]
    four: NDArray[np.int32]


class MaskCosts(NamedTuple):
    """constant: int64 [L], what a rank without experts pays; exact: what each choice adds; pairs: at least beyond."""

    constant: NDArray[np.int64]
    exact: Counts
    pairs: PairCounts


def can_count(num_experts: int, top_k: int) -> bool:
    """Whether sets are small enough, and experts few enough, for these counts."""
    return top_k <= LARGEST_SET and 4 * num_experts**4 <= _COUNTS_BYTES


def count_masks(sets: NDArray[np.int32], cost: NDArray[np.int32], load: NDArray[np.float64]) -> MaskCosts:
    """The counts of sets, int32 [S, K], whose masks cost int32 [L, S, 2 ** K] in L ways; load: float64 [E], how often
    experts are used.
    """
    weight = _LEAST_WEIGHT + np.rint(_WEIGHTS * (load / max(float(load.max()), 1.0)) ** 2).astype(np.int64)
    E = len(load)
    one, two, three, four = (np.zeros((len(cost), *(E,) * size), dtype=np.int32) for size in range(1, LARGEST_SET + 1))
    exact = Counts(one, two, three, four)
    pairs = PairCounts(two.copy(), three.copy(), four.copy())
    for way in range(len(cost)):
        _count(sets, cost[way], weight, way, exact, pairs)
    return MaskCosts(cost[:, :, 0].sum(axis=1, dtype=np.int64), exact, pairs)


@compiled
def _count(
    sets: NDArray[np.int32], cost: NDArray[np.int32], weight: NDArray[np.int64], way: int, exact: Counts,
    pairs: PairCounts,
) -> None:  # fmt: skip
    K = sets.shape[1]
    change = np.zeros((1 << K, K), dtype=np.int64)
    least = np.zeros((1 << K, K, K), dtype=np.int64)
    for s in range(len(sets)):
        _write_changes(cost[s], change)
        _write_pairs(cost[s], weight[sets[s]], change, least)
        _invert(change.reshape(1 << K, K))
        _invert(least.reshape(1 << K, K * K))
        _add_in_every_order(sets[s], change, least, way, exact, pairs)


@compiled
def _invert(terms: NDArray[np.int64]) -> None:
    """From sums over the parts of each mask, [2 ** K, N], to what each mask adds to its smaller parts' sums."""
    bit = 1
    while bit < len(terms):
        for mask in range(len(terms)):
            if mask & bit:
                for i in range(terms.shape[1]):
                    terms[mask, i] -= terms[mask ^ bit, i]
        bit <<= 1


@compiled
def _write_changes(cost: NDArray[np.int32], change: NDArray[np.int64]) -> None:
    """Write what expert e adds to part a of one set, [2 ** K, K], 0 for e in a."""
    for chosen in range(len(cost)):
        for e in range(change.shape[1]):
            change[chosen, e] = np.int64(cost[chosen | 1 << e]) - cost[chosen]


@compiled
def _write_pairs(
    cost: NDArray[np.int32], weight: NDArray[np.int64], change: NDArray[np.int64], least: NDArray[np.int64]
) -> None:
    """Write each pair's term beside each part of one set, rounded down and divided by weight: [2 ** K, K, K], 0 where
    they meet.
    """
    full, K = len(cost) - 1, change.shape[1]
    least[:] = 0
    for chosen in range(full + 1):
        for e in range(K):
            for f in range(e):
                pair = 1 << e | 1 << f
                if chosen & pair:
                    continue
                rest = full ^ chosen ^ pair
                others, lowest = rest, np.int64(1) << 62
                while True:
                    beyond, whole = _beyond_singles(cost, weight, change, chosen, others | pair)
                    lowest = min(lowest, beyond * weight[e] * weight[f] // whole)
                    if others == 0:
                        break
                    others = (others - 1) & rest
                least[chosen, e, f] = lowest * weight[e] // (weight[e] + weight[f])
                least[chosen, f, e] = lowest - least[chosen, e, f]


@compiled
def _beyond_singles(
    cost: NDArray[np.int32], weight: NDArray[np.int64], change: NDArray[np.int64], chosen: int, part: int
) -> tuple[np.int64, np.int64]:
    """What `part` adds to `chosen` beyond what its experts add one by one, and the weight of its pairs."""
    beyond, pairs, so_far = np.int64(cost[chosen | part]) - cost[chosen], np.int64(0), np.int64(0)
    for k in range(change.shape[1]):
        if part >> k & 1:
            beyond -= change[chosen, k]
            pairs += weight[k] * so_far
            so_far += weight[k]
    return beyond, pairs


@compiled
def _add_in_every_order(
    experts: NDArray[np.int32], change: NDArray[np.int64], least: NDArray[np.int64], way: int, exact: Counts,
    pairs: PairCounts,
) -> None:  # fmt: skip
    """Add one set's terms: of each mask that is chosen, for each expert beside it, and for each pair."""
    K = len(experts)
    for e in range(K):
        expert = experts[e]
        exact.one[way, expert] += change[0, e]
        for i in range(K):
            if i == e:
                continue
            first = experts[i]
            exact.two[way, first, expert] += change[1 << i, e]
            pairs.two[way, first, expert] += least[0, i, e]
            for j in range(K):
                if j in (e, i):
                    continue
                second = experts[j]
                exact.three[way, first, second, expert] += change[1 << i | 1 << j, e]
                pairs.three[way, first, second, expert] += least[1 << i, j, e]
                for k in range(K):
                    if k not in (e, i, j):
                        third, chosen = experts[k], 1 << i | 1 << j
                        exact.four[way, first, second, third, expert] += change[chosen | 1 << k, e]
                        pairs.four[way, first, second, third, expert] += least[chosen, k, e]


@compiled
def count_chosen(counts: Counts, way: int, chosen: NDArray[np.int64], expert: int, adds: NDArray[np.int32]) -> None:
    """Bring adds [E], what experts add beyond `chosen`, to what they add when `expert` is chosen too."""
    _add_row(counts.two[way, expert], adds)
    for i in range(len(chosen)):
        _add_row(counts.three[way, expert, chosen[i]], adds)
        for j in range(i):
            _add_row(counts.four[way, expert, chosen[i], chosen[j]], adds)


@compiled
def count_pairs(
    pairs: PairCounts, way: int, chosen: NDArray[np.int64], expert: int, candidates: NDArray[np.int64],
    beyond: NDArray[np.int32],
) -> None:  # fmt: skip
    """The same for rows `candidates` of beyond [E, E], what pairs add at least beyond what each expert adds."""
    for candidate in candidates:
        _add_row(pairs.three[way, expert, candidate], beyond[candidate])
        for other in chosen:
            _add_row(pairs.four[way, expert, other, candidate], beyond[candidate])


@compiled
def _add_row(row: NDArray[np.int32], total: NDArray[np.int32]) -> None:
    for e in range(len(total)):
        total[e] += row[e]


@compiled
def pair_adds(counts: Counts, way: int, chosen: NDArray[np.int64], first: int, second: int) -> np.int64:
    """What `second` adds more with `first` than without, beyond `chosen`."""
    total = np.int64(counts.two[way, first, second])
    for i in range(len(chosen)):
        total += counts.three[way, first, chosen[i], second]
        for j in range(i):
            total += counts.four[way, first, chosen[i], chosen[j], second]
    return total
