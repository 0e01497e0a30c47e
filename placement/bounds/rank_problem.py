"""One layer as a choice of one column of experts per rank: what a rank pays for the experts that it holds.

With one copy of each expert and the homes given, tokens of expert set s pay one copy for each rank that holds one of s
and is not their home:

    cost = sum over ranks r of f_r(S_r),   f_r(S) = sum over s of (tokens of s that start elsewhere) [S meets s],

S_r the *column* of rank r. What ties the ranks together is only that every expert is in exactly one column.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.column_search import Room
from specmoe.placement.bounds.groups import Groups, Weights, groups_of_sets, weigh


@dataclass(frozen=True, kw_only=True)
class RankKind:
    """Ranks that pay and hold alike: `count` of them."""

    weights: Weights
    room: Room
    count: int


@dataclass(frozen=True, kw_only=True)
class RankProblem:
    """The columns' problem. kinds cover all ranks; kind_of_rank: which one a rank is of."""

    groups: Groups
    kinds: Sequence[RankKind]
    kind_of_rank: NDArray[np.int64]

    @property
    def num_experts(self) -> int:
        return self.groups.num_experts

    def costs(self, kind: int, columns: NDArray[np.uint8]) -> NDArray[np.float64]:
        """float64 [M]: what a rank of `kind` pays for each column, uint8 [M, E]."""
        return _costs(self.groups, self.kinds[kind].weights.weight, columns)

    def swaps(self, kind: int, column: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The columns, uint8 [M, E], that a rank of `kind` can hold among `column`, uint8 [E], and all that differ from
        it by one swap; and what each costs, float64 [M].
        """
        room = self.kinds[kind].room
        inside, outside = np.flatnonzero(column), np.flatnonzero(column == 0)
        load = float(column @ room.load) - room.load[inside][:, None] + room.load[outside][None, :]
        drop, take = np.nonzero((load >= room.lightest) & (load <= room.heaviest))
        columns = np.repeat(column[None], len(drop) + 1, axis=0)
        columns[np.arange(1, len(columns)), inside[drop]] = 0
        columns[np.arange(1, len(columns)), outside[take]] = 1
        cost, change = _swap_costs(self.groups, self.kinds[kind].weights.weight, column)
        costs = np.append(cost, cost + change[inside[drop], outside[take]])
        first = 0 if room.lightest <= float(column @ room.load) <= room.heaviest else 1
        return columns[first:], costs[first:]


def rank_problem(
    sets: NDArray[np.int32],
    away: NDArray[np.float64],
    load: NDArray[np.float64],
    slots: NDArray[np.int32],
    ceiling: NDArray[np.float64],
) -> RankProblem:
    """The problem of sets [S, K] whose tokens that start elsewhere than on rank r are away[:, r], whole numbers [S, R].

    load: float64 [E], pairs of each expert; slots: int32 [R], E in all; ceiling: float64 [R], the most pairs of a rank.
    """
    groups = groups_of_sets(sets, len(load))
    lightest = load.sum() - (ceiling.sum() - ceiling)
    rows = np.vstack([away, slots, ceiling, lightest])
    _, first, kind_of_rank, counts = np.unique(rows, axis=1, return_index=True, return_inverse=True, return_counts=True)
    kinds = [
        RankKind(
            weights=weigh(groups, away[:, rank].astype(np.int32)),
            room=Room(int(slots[rank]), load, float(lightest[rank]), float(ceiling[rank])),
            count=int(count),
        )
        for rank, count in zip(first, counts, strict=True)
    ]
    return RankProblem(groups=groups, kinds=kinds, kind_of_rank=kind_of_rank.ravel().astype(np.int64))


@compiled
def _costs(groups: Groups, weight: NDArray[np.int32], columns: NDArray[np.uint8]) -> NDArray[np.float64]:
    cost = np.zeros(len(columns))
    for g in range(len(weight)):
        if weight[g] == 0:
            continue
        for row in range(len(columns)):
            for at in range(groups.starts[g], groups.starts[g + 1]):
                if columns[row, groups.members[at]]:
                    cost[row] += weight[g]
                    break
    return cost


@compiled
def _swap_costs(
    groups: Groups, weight: NDArray[np.int32], column: NDArray[np.uint8]
) -> tuple[float, NDArray[np.float64]]:
    """What `column` [E] costs, and what changes, float64 [E, E], when e of it makes room for another expert f."""
    E = len(column)
    cost, gain = 0.0, np.zeros(E)
    change = np.zeros((E, E))
    for g in range(len(weight)):
        experts = groups.members[groups.starts[g] : groups.starts[g + 1]]
        hits, only = 0, -1
        for e in experts:
            if column[e]:
                hits += 1
                only = e
        if hits > 0:
            cost += weight[g]
        if hits == 0:
            for f in experts:
                gain[f] += weight[g]
        elif hits == 1:
            # Without e the group is met only by what comes in its place.
            change[only] -= weight[g]
            for f in experts:
                if f != only:
                    change[only, f] += weight[g]
    for e in range(E):
        change[e] += gain
    return cost, change
