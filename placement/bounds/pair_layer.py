"""A layer of few experts, at most two of them a token, as counts that searches of its placement work on.

With S_h what rank h holds, the tokens at home on h pay

    sum over e outside S_h of loads[h, e]  -  sum over pairs outside S_h that one rank serves of tokens[h, pair].

Sets of experts are masks: bit e says whether expert e is among them. A *column* is what one rank can hold.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.layer_case import LayerCase

# What keeps the searches short: columns of all ranks, and subsets of ranks and of experts, which are gone through.
MOST_COLUMNS = 1000
_MOST_RANKS, _MOST_EXPERTS = 10, 12
_LARGEST_SET = 2


class PairLayer(NamedTuple):
    """first, second, pair: int64 [P], the pairs of experts and their masks; tokens: int64 [R, P], of each pair at home
    on each rank; loads: int64 [R, E], pairs of a token and an expert by home; together: int64 [R, 2 ** E], tokens of
    pairs inside each mask.

    columns: int64 [M], the masks; begin, end: int64 [R], each rank's among them; members: int64 [M, k] and pairs_in:
    int64 [M, k * (k - 1) / 2], what each holds, -1 past the end. ceiling: int64 [R]; is_cover: the replica choice.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    pair: NDArray[np.int64]
    tokens: NDArray[np.int64]
    loads: NDArray[np.int64]
    together: NDArray[np.int64]
    columns: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    members: NDArray[np.int64]
    pairs_in: NDArray[np.int64]
    ceiling: NDArray[np.int64]
    is_cover: bool


def count_columns(num_experts: int, slots: NDArray[np.int32]) -> int:
    """In how many ways the ranks, one by one, can be filled; slots: [R]."""
    return sum(math.comb(num_experts, int(count)) for count in slots)


def can_pair(case: LayerCase) -> bool:
    """Whether tokens have two experts at most, links are alike, and the ways to fill a rank are few."""
    is_small = case.ep_size <= _MOST_RANKS and case.num_experts <= _MOST_EXPERTS
    is_simple = case.sets.shape[1] <= _LARGEST_SET and int(case.node.max()) == 0
    return (
        is_small and is_simple and case.num_tokens > 0 and count_columns(case.num_experts, case.slots) <= MOST_COLUMNS
    )


def pair_layer(case: LayerCase) -> PairLayer:
    """The counts of a layer that `can_pair`."""
    E, R = case.num_experts, case.ep_size
    first, second = np.triu_indices(E, 1)
    loads, tokens = np.zeros((R, E), dtype=np.int64), np.zeros((R, len(first)), dtype=np.int64)
    for experts in case.sets.T:
        np.add.at(loads.T, experts, case.homes_of_set)
    if case.sets.shape[1] == _LARGEST_SET:
        number = np.zeros((E, E), dtype=np.int64)
        number[first, second] = number[second, first] = np.arange(len(first))
        np.add.at(tokens.T, number[case.sets[:, 0], case.sets[:, 1]], case.homes_of_set)
    pair = (1 << first) | (1 << second)
    masks = np.arange(1 << E)
    inside = (masks[:, None] & pair[None, :]) == pair[None, :]
    chosen, begin, end = _columns(E, case.slots)
    return PairLayer(
        first=first.astype(np.int64),
        second=second.astype(np.int64),
        pair=pair.astype(np.int64),
        tokens=tokens,
        loads=loads,
        together=tokens @ inside.T.astype(np.int64),
        columns=np.array([sum(1 << e for e in column) for column in chosen], dtype=np.int64),
        begin=begin,
        end=end,
        members=_padded(chosen),
        pairs_in=_padded([np.flatnonzero(inside[sum(1 << e for e in column)]).tolist() for column in chosen]),
        ceiling=np.floor(case.ceiling).astype(np.int64),
        is_cover=case.replica_choice == "cover",
    )


def masks_of(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    """int64 [R]: the mask of what each rank holds; holds: bool [R, E]."""
    masks: NDArray[np.int64] = holds.astype(np.int64) @ (1 << np.arange(holds.shape[1], dtype=np.int64))
    return masks


def holds_of(masks: NDArray[np.int64], num_experts: int) -> NDArray[np.bool_]:
    """The reverse."""
    holds: NDArray[np.bool_] = (masks[:, None] >> np.arange(num_experts)) & 1 == 1
    return holds


def _columns(
    num_experts: int, slots: NDArray[np.int32]
) -> tuple[list[tuple[int, ...]], NDArray[np.int64], NDArray[np.int64]]:
    """All columns, and of each rank int64 [R] where its own begin and end; ranks of as many slots share theirs."""
    chosen: list[tuple[int, ...]] = []
    ranges: dict[int, tuple[int, int]] = {}
    for count in sorted({int(count) for count in slots}):
        begin = len(chosen)
        chosen += itertools.combinations(range(num_experts), count)
        ranges[count] = begin, len(chosen)
    begin, end = np.array([ranges[int(count)] for count in slots], dtype=np.int64).T
    return chosen, np.ascontiguousarray(begin), np.ascontiguousarray(end)


def _padded(rows: list[tuple[int, ...]] | list[list[int]]) -> NDArray[np.int64]:
    """The rows as one array, filled up with -1."""
    padded = np.full((len(rows), max(1, *(len(row) for row in rows))), -1, dtype=np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded
