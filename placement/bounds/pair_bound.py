"""What a branch of the search costs at least, each rank for itself.

The tokens at home on h save a copy for a pair outside S_h only if some rank holds both of its experts, and then some
rank q != h does. So for any prices 0 <= credit(h, pair) <= tokens(h, pair), demand(pair) >= 0 and price(expert) >= 0
what all pay is at least the sum of demand, of price, and over ranks of

    sum over e outside S_h of loads(h, e)  -  saved(h, S_h)  -  sum over e in S_h of price(e)
        -  sum over pairs in S_h of (demand(pair) + sum over q != h of credit(q, pair)).

saved(h, S) is the most of tokens - credit that pairs outside S save at once: all of them under `cover`, those inside
blocks under `static` (`pair_parts.py`). What a branch has settled takes prices away: a pair that is kept apart saves
nothing, one that is wanted or held has no credits, demand is for wanted pairs and price for experts that no rank
with a column holds. Each rank pays for its cheapest column, and all is whole, so the bound is exact arithmetic.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_branch import APART, Branch
from specmoe.placement.bounds.pair_layer import PairLayer
from specmoe.placement.bounds.pair_parts import save_by_parts


class Values(NamedTuple):
    """of_column: int64 [R, N], what each column costs its rank at least; lowest and cheapest: int64 [R], the least of
    these and its column; is_saved: bool [R, P], the pairs saved by homes with their cheapest columns.

    most and block: int64 [2 ** E], as in `pair_parts.py`; work: int64 [1], operations so far.
    """

    of_column: NDArray[np.int64]
    lowest: NDArray[np.int64]
    cheapest: NDArray[np.int64]
    is_saved: NDArray[np.bool_]
    most: NDArray[np.int64]
    block: NDArray[np.int64]
    work: NDArray[np.int64]


@compiled
def new_values(layer: PairLayer) -> Values:
    """Room for the values of any branch."""
    R, E = layer.loads.shape
    return Values(
        np.zeros((R, (layer.end - layer.begin).max()), dtype=np.int64),
        np.zeros(R, dtype=np.int64),
        np.zeros(R, dtype=np.int64),
        np.zeros((R, len(layer.pair)), dtype=np.bool_),
        np.zeros(1 << E, dtype=np.int64),
        np.zeros(1 << E, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
    )


@compiled
def bound_branch(layer: PairLayer, branch: Branch, values: Values) -> int:
    """What the branch costs at least; writes its values."""
    R, E = layer.loads.shape
    earned = branch.demand.copy()
    total = branch.demand.sum()
    for rank in range(R):
        earned += branch.credit[rank]
    for expert in range(E):
        if not branch.is_held[expert]:
            total += branch.price[expert]
    of_expert, of_pair = np.zeros(E, dtype=np.int64), np.zeros(len(layer.pair), dtype=np.int64)
    for rank in range(R):
        of_pair[:] = earned - branch.credit[rank]
        constant = _of_own_experts(layer, branch, rank, of_expert)
        if layer.is_cover:
            constant -= _save_by_cover(layer, branch, rank, of_expert, of_pair)
        else:
            saved = np.where(branch.pair_state == APART, 0, layer.tokens[rank] - branch.credit[rank])
            save_by_parts(layer, saved, branch.pair_state, values.most, values.block)
            values.work[0] += 3**E // 2
        _value_columns(layer, branch, values, rank, constant, of_expert, of_pair)
        total += values.lowest[rank]
    return int(total)


@compiled
def _of_own_experts(layer: PairLayer, branch: Branch, rank: int, of_expert: NDArray[np.int64]) -> int:
    """What a rank pays without a column; writes what each expert is worth to it."""
    constant = 0
    for expert in range(len(of_expert)):
        constant += layer.loads[rank, expert]
        of_expert[expert] = layer.loads[rank, expert]
        if not branch.is_held[expert]:
            of_expert[expert] += branch.price[expert]
    return constant


@compiled
def _save_by_cover(
    layer: PairLayer, branch: Branch, rank: int, of_expert: NDArray[np.int64], of_pair: NDArray[np.int64]
) -> int:
    """What a rank without a column saves; each expert that it holds takes that of its pairs away, each pair once."""
    constant = 0
    for p in range(len(layer.pair)):
        if branch.pair_state[p] != APART:
            saved = layer.tokens[rank, p] - branch.credit[rank, p]
            constant += saved
            of_expert[layer.first[p]] -= saved
            of_expert[layer.second[p]] -= saved
            of_pair[p] += saved
    return constant


@compiled
def _value_columns(
    layer: PairLayer,
    branch: Branch,
    values: Values,
    rank: int,
    constant: int,
    of_expert: NDArray[np.int64],
    of_pair: NDArray[np.int64],
) -> None:
    """Write the value of each of a rank's columns: the constant, less what its experts and pairs are worth."""
    everything = (1 << len(of_expert)) - 1
    lowest = 1 << 60
    for i in range(branch.num[rank]):
        column = branch.left[rank, i]
        index = layer.begin[rank] + column
        value = constant
        for k in range(layer.members.shape[1]):
            if layer.members[index, k] >= 0:
                value -= of_expert[layer.members[index, k]]
        for k in range(layer.pairs_in.shape[1]):
            if layer.pairs_in[index, k] >= 0:
                value -= of_pair[layer.pairs_in[index, k]]
        if not layer.is_cover:
            value -= values.most[everything ^ layer.columns[index]]
        values.of_column[rank, column] = value
        if value < lowest:
            lowest, values.cheapest[rank] = value, column
    values.lowest[rank] = lowest
    mask = layer.columns[layer.begin[rank] + values.cheapest[rank]]
    _note_saved(layer, values, rank, everything ^ mask)
    values.work[0] += len(layer.pair) + branch.num[rank] * (layer.members.shape[1] + layer.pairs_in.shape[1])


@compiled
def _note_saved(layer: PairLayer, values: Values, rank: int, lacking: int) -> None:
    """Write which pairs a home that lacks these experts saves."""
    if layer.is_cover:
        for p in range(len(layer.pair)):
            values.is_saved[rank, p] = layer.pair[p] & lacking == layer.pair[p]
        return
    values.is_saved[rank] = False
    while lacking:
        block = values.block[lacking]
        for p in range(len(layer.pair)):
            values.is_saved[rank, p] |= layer.pair[p] & block == layer.pair[p]
        lacking ^= block


@compiled
def drop_dear(branch: Branch, values: Values, room: int) -> bool:
    """Drop columns that cost `room` more than their rank's cheapest, or beyond; whether each rank keeps one."""
    for rank in range(len(branch.num)):
        kept = 0
        for i in range(branch.num[rank]):
            column = branch.left[rank, i]
            if values.of_column[rank, column] - values.lowest[rank] < room:
                branch.left[rank, kept] = column
                kept += 1
        branch.num[rank] = kept
    return room > 0
