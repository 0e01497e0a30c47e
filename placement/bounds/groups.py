"""Weighted groups of experts, and what is left of them as experts are chosen one after the other.

A chosen expert *meets* the groups that it is in. The search asks, for the groups that none of the chosen meets, for
the weight of those with expert e (`marginal`) and of those with both e and f (`pair`).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled

# Above this many bytes of counts the groups are walked through one by one.
_COUNTS_BYTES = 1 << 23
_LARGEST_COUNTED = 4


class Groups(NamedTuple):
    """Group g, [N], has the experts `members[starts[g] : starts[g + 1]]` (int64 [N + 1], int32), each once; expert e is
    in `groups[offsets[e] : offsets[e + 1]]` (int64 [E + 1], int32). size: of the largest.
    """

    starts: NDArray[np.int64]
    members: NDArray[np.int32]
    offsets: NDArray[np.int64]
    groups: NDArray[np.int32]
    size: int

    @property
    def num_experts(self) -> int:
        return len(self.offsets) - 1


class Weights(NamedTuple):
    """weight: int32 [N] of each group, below 2**31 in all; single: int32 [E] and pair: int32 [E * E], of the groups
    with an expert or with two. triple: int32 [E, E * E] and quadruple: int32 [E, E, E * E], empty where groups are
    walked through instead. Entries with an expert twice are 0.
    """

    weight: NDArray[np.int32]
    single: NDArray[np.int32]
    pair: NDArray[np.int32]
    triple: NDArray[np.int32]
    quadruple: NDArray[np.int32]


def groups_of_sets(sets: NDArray[np.int32], num_experts: int) -> Groups:
    """The rows of int32 [N, K] as groups."""
    starts = np.arange(0, sets.size + 1, sets.shape[1], dtype=np.int64)
    return groups_from(starts, np.ascontiguousarray(sets, dtype=np.int32).ravel(), num_experts)


def groups_from(starts: NDArray[np.int64], members: NDArray[np.int32], num_experts: int) -> Groups:
    """Groups by their experts alone: starts: int64 [N + 1], members: int32."""
    sizes = np.diff(starts)
    offsets = np.zeros(num_experts + 1, dtype=np.int64)
    np.cumsum(np.bincount(members, minlength=num_experts), out=offsets[1:])
    rows = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[np.argsort(members, kind="stable")]
    return Groups(starts, members, offsets, rows, int(sizes.max(initial=1)))


def weigh(groups: Groups, weight: NDArray[np.int32]) -> Weights:
    """Count the groups' weight, int32 [N], by their experts."""
    E = groups.num_experts
    counted = groups.size <= _LARGEST_COUNTED and 4 * E**4 <= _COUNTS_BYTES
    weights = Weights(
        np.ascontiguousarray(weight, dtype=np.int32),
        np.zeros(E, dtype=np.int32),
        np.zeros(E * E, dtype=np.int32),
        np.zeros((E if counted else 0, E * E), dtype=np.int32),
        np.zeros((E if counted else 0, E, E * E), dtype=np.int32),
    )
    _count(groups, weights)
    return weights


@compiled
def _count(groups: Groups, weights: Weights) -> None:
    E = len(weights.single)
    for g in range(len(weights.weight)):
        experts = groups.members[groups.starts[g] : groups.starts[g + 1]]
        weight = weights.weight[g]
        for e in experts:
            weights.single[e] += weight
            for f in experts:
                if f == e:
                    continue
                weights.pair[e * E + f] += weight
                if len(weights.triple) == 0:
                    continue
                for x in experts:
                    if x in (e, f):
                        continue
                    weights.triple[e, f * E + x] += weight
                    for y in experts:
                        if y not in (e, f, x):
                            weights.quadruple[e, f, x * E + y] += weight


@compiled
def meet(
    groups: Groups,
    weights: Weights,
    chosen: NDArray[np.int64],
    expert: int,
    hits: NDArray[np.int32],
    marginal: NDArray[np.int32],
    pair: NDArray[np.int32],
) -> int:
    """Take the groups that `expert` meets, and none of `chosen` does, out of marginal [E] and pair [E * E].

    hits: int32 [N], how many of the chosen meet each group, kept where groups are walked through. Returns the work
    done, about a nanosecond each. Rows of experts that are chosen no longer matter and may be wrong.
    """
    if len(weights.triple) == 0:
        return _meet_listed(groups, weights.weight, expert, hits, marginal, pair)
    return _meet_counted(weights, chosen, expert, marginal, pair)


@compiled
def part_from(groups: Groups, weights: Weights, expert: int, hits: NDArray[np.int32]) -> None:
    """Take back what `meet` did to `hits`."""
    if len(weights.triple) == 0:
        for at in range(groups.offsets[expert], groups.offsets[expert + 1]):
            hits[groups.groups[at]] -= 1


@compiled
def _meet_listed(
    groups: Groups,
    weight: NDArray[np.int32],
    expert: int,
    hits: NDArray[np.int32],
    marginal: NDArray[np.int32],
    pair: NDArray[np.int32],
) -> int:
    E, met = len(marginal), 0
    for at in range(groups.offsets[expert], groups.offsets[expert + 1]):
        g = groups.groups[at]
        hits[g] += 1
        if hits[g] > 1:
            continue
        met += 1
        first, last = groups.starts[g], groups.starts[g + 1]
        for i in range(first, last):
            e = groups.members[i]
            marginal[e] -= weight[g]
            for j in range(first, i):
                f = groups.members[j]
                pair[e * E + f] -= weight[g]
                pair[f * E + e] -= weight[g]
    walked = int(groups.offsets[expert + 1] - groups.offsets[expert])
    return 2 * walked + met * groups.size * groups.size


@compiled
def _meet_counted(
    weights: Weights, chosen: NDArray[np.int64], expert: int, marginal: NDArray[np.int32], pair: NDArray[np.int32]
) -> int:
    # Groups have at most four experts: of those with `expert`, e and f, each chosen one meets the ones that it is the
    # fourth of.
    E = len(marginal)
    for e in range(E):
        marginal[e] -= pair[expert * E + e]
    with_expert = weights.triple[expert]
    for i in range(E * E):
        pair[i] -= with_expert[i]
    for other in chosen:
        with_both = weights.quadruple[expert, other]
        for i in range(E * E):
            pair[i] += with_both[i]
    return (len(chosen) + 1) * E * E // 8
