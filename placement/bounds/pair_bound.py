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

    constant: int64 [R], of_expert: int64 [R, E] and of_pair: int64 [R, P], what a rank costs without a column, and what
    each expert and each pair in one takes off. most and block: int64 [2 ** E], as in `pair_parts.py`; work: int64 [1],
    operations so far.
    """

    of_column: NDArray[np.int64]
    lowest: NDArray[np.int64]
    cheapest: NDArray[np.int64]
    is_saved: NDArray[np.bool_]
    constant: NDArray[np.int64]
    of_expert: NDArray[np.int64]
    of_pair: NDArray[np.int64]
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
        np.zeros(R, dtype=np.int64),
        np.zeros((R, E), dtype=np.int64),
        np.zeros((R, len(layer.pair)), dtype=np.int64),
        np.zeros(1 << E, dtype=np.int64),
        np.zeros(1 << E, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
    )


# Calls that take a branch and its values apart cost as much as a rank does: each of these goes through all ranks.
@compiled
def bound_branch(layer: PairLayer, branch: Branch, values: Values) -> int:
    """What the branch costs at least; writes its values."""
    _price_experts(layer, branch, values)
    _price_pairs(layer, branch, values)
    total = 0
    for p in range(len(layer.pair)):
        total += branch.demand[p]
    for expert in range(len(branch.price)):
        if not branch.is_held[expert]:
            total += branch.price[expert]
    if layer.is_cover:
        _value_columns(layer, branch, values, 0, len(branch.num))
    else:
        for rank in range(len(branch.num)):
            saved = np.where(branch.pair_state == APART, 0, layer.tokens[rank] - branch.credit[rank])
            save_by_parts(layer, saved, branch.pair_state, values.most, values.block)
            _value_columns(layer, branch, values, rank, rank + 1)
            _note_blocks(layer, values, rank)
    for rank in range(len(branch.num)):
        total += values.lowest[rank]
    return int(total)


@compiled
def _price_experts(layer: PairLayer, branch: Branch, values: Values) -> None:
    """Write what ranks cost without a column, but for what they save, and what each expert takes off."""
    for rank in range(len(branch.num)):
        values.constant[rank] = 0
        for expert in range(len(branch.price)):
            values.constant[rank] += layer.loads[rank, expert]
            values.of_expert[rank, expert] = layer.loads[rank, expert]
            if not branch.is_held[expert]:
                values.of_expert[rank, expert] += branch.price[expert]


@compiled
def _price_pairs(layer: PairLayer, branch: Branch, values: Values) -> None:
    """Write what each pair takes off. Under `cover` a rank without a column saves all pairs, and each expert that it
    holds takes that of its pairs away, but that of each pair once.
    """
    for p in range(len(layer.pair)):
        earned, first, second = branch.demand[p], layer.first[p], layer.second[p]
        for rank in range(len(branch.num)):
            earned += branch.credit[rank, p]
        for rank in range(len(branch.num)):
            values.of_pair[rank, p] = earned - branch.credit[rank, p]
            if layer.is_cover and branch.pair_state[p] != APART:
                saved = layer.tokens[rank, p] - branch.credit[rank, p]
                values.constant[rank] -= saved
                values.of_expert[rank, first] -= saved
                values.of_expert[rank, second] -= saved
                values.of_pair[rank, p] += saved


@compiled
def _value_columns(layer: PairLayer, branch: Branch, values: Values, begin: int, end: int) -> None:
    """Write the values of the columns of these ranks: the constant, less what experts and pairs take off."""
    everything = (1 << len(branch.price)) - 1
    size, num_pairs = layer.members.shape[1], layer.pairs_in.shape[1]
    for rank in range(begin, end):
        lowest = 1 << 60
        for i in range(branch.num[rank]):
            column = branch.left[rank, i]
            index = layer.begin[rank] + column
            value = values.constant[rank]
            for k in range(size):
                if layer.members[index, k] >= 0:
                    value -= values.of_expert[rank, layer.members[index, k]]
            for k in range(num_pairs):
                if layer.pairs_in[index, k] >= 0:
                    value -= values.of_pair[rank, layer.pairs_in[index, k]]
            if not layer.is_cover:
                value -= values.most[everything ^ layer.columns[index]]
            values.of_column[rank, column] = value
            if value < lowest:
                lowest, values.cheapest[rank] = value, column
        values.lowest[rank] = lowest
        if layer.is_cover:
            mask = layer.columns[layer.begin[rank] + values.cheapest[rank]]
            for p in range(len(layer.pair)):
                values.is_saved[rank, p] = layer.pair[p] & mask == 0
        values.work[0] += len(layer.pair) + branch.num[rank] * (size + num_pairs)


@compiled
def _note_blocks(layer: PairLayer, values: Values, rank: int) -> None:
    """Write which pairs a home with its cheapest column saves under `static`."""
    mask = layer.columns[layer.begin[rank] + values.cheapest[rank]]
    lacking = (len(values.most) - 1) ^ mask
    values.is_saved[rank] = False
    while lacking:
        block = values.block[lacking]
        for p in range(len(layer.pair)):
            values.is_saved[rank, p] |= layer.pair[p] & block == layer.pair[p]
        lacking ^= block
    values.work[0] += 3 ** values.of_expert.shape[1] // 2


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
