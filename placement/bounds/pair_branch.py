"""A branch of the search for the best placement of few experts: what it has settled, and the prices it is bounded with.

Two things are settled one by one: whether any rank holds the two experts of a pair together, and the columns of ranks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_layer import PairLayer

# Of a pair: not settled; no rank may hold both; one rank at least has to; a rank that has its column does.
OPEN, APART, WANTED, TOGETHER = 0, 1, 2, 3


class Branch(NamedTuple):
    """pair_state: int64 [P]; is_held: bool [E], by a rank that has its column; is_taken: bool [R], whether a rank has
    its column, with its mask in masks: int64 [R]. num: int64 [R] and left: int16 [R, N], the columns that a rank can
    take, counted from its own first; the one that it has.

    credit: int64 [R, P], demand: int64 [P] and price: int64 [E], as in `pair_bound.py`.
    """

    pair_state: NDArray[np.int64]
    is_held: NDArray[np.bool_]
    is_taken: NDArray[np.bool_]
    masks: NDArray[np.int64]
    num: NDArray[np.int64]
    left: NDArray[np.int16]
    credit: NDArray[np.int64]
    demand: NDArray[np.int64]
    price: NDArray[np.int64]


@compiled
def new_branch(layer: PairLayer) -> Branch:
    """All placements, at prices of 0."""
    R, E = layer.loads.shape
    P, num = len(layer.pair), layer.end - layer.begin
    left = np.zeros((R, num.max()), dtype=np.int16)
    left[:] = np.arange(num.max())
    return Branch(
        np.full(P, OPEN, dtype=np.int64),
        np.zeros(E, dtype=np.bool_),
        np.zeros(R, dtype=np.bool_),
        np.zeros(R, dtype=np.int64),
        num,
        left,
        np.zeros((R, P), dtype=np.int64),
        np.zeros(P, dtype=np.int64),
        np.zeros(E, dtype=np.int64),
    )


@compiled
def copy_branch(source: Branch, target: Branch) -> None:
    """Make the target the same."""
    target.pair_state[:] = source.pair_state
    target.is_held[:] = source.is_held
    target.is_taken[:] = source.is_taken
    target.masks[:] = source.masks
    target.num[:] = source.num
    for rank in range(len(source.num)):
        target.left[rank, : source.num[rank]] = source.left[rank, : source.num[rank]]
    target.credit[:] = source.credit
    target.demand[:] = source.demand
    target.price[:] = source.price


@compiled
def keep_apart(layer: PairLayer, branch: Branch, pair: int) -> bool:
    """Let no rank hold both of an open pair; whether each rank has a column left."""
    branch.pair_state[pair] = APART
    branch.credit[:, pair] = 0
    for rank in range(len(branch.num)):
        kept = 0
        for i in range(branch.num[rank]):
            column = branch.left[rank, i]
            if ~layer.columns[layer.begin[rank] + column] & layer.pair[pair]:
                branch.left[rank, kept] = column
                kept += 1
        branch.num[rank] = kept
        if kept == 0:
            return False
    return True


@compiled
def want_together(branch: Branch, pair: int) -> None:
    """Let some rank hold both of an open pair."""
    branch.pair_state[pair] = WANTED
    branch.demand[pair] = branch.credit[:, pair].sum()
    branch.credit[:, pair] = 0


@compiled
def take_column(layer: PairLayer, branch: Branch, rank: int, column: int) -> None:
    """Give a rank one of its columns."""
    mask = layer.columns[layer.begin[rank] + column]
    branch.masks[rank], branch.is_taken[rank] = mask, True
    branch.num[rank], branch.left[rank, 0] = 1, column
    for expert in range(len(branch.is_held)):
        branch.is_held[expert] |= mask >> expert & 1 == 1
    for p in range(len(layer.pair)):
        if mask & layer.pair[p] == layer.pair[p]:
            branch.pair_state[p], branch.demand[p] = TOGETHER, 0
            branch.credit[:, p] = 0
        elif mask & layer.pair[p]:
            branch.credit[rank, p] = 0
