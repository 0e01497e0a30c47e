"""The best placement of a layer of few experts, exactly: branch and bound over pairs held together and ranks' columns.

Which pairs some rank holds together is all that ties the ranks' costs. So a branch first settles such pairs, each time
the one that raises the bound most on its weaker side; where none raises it, or some rank has two columns left, the rank
with the fewest takes its columns one by one. Columns with which nothing can cost less than the best known are left out
in all of a branch. A placement whose loads can be borne by shares is given its best dispatch; where a short search does
not find or refute one, it is put aside.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.pair_anneal import least_cost
from specmoe.placement.bounds.pair_bound import Values, bound_branch, drop_dear, new_values
from specmoe.placement.bounds.pair_branch import (
    OPEN,
    WANTED,
    Branch,
    copy_branch,
    keep_apart,
    new_branch,
    take_column,
    want_together,
)
from specmoe.placement.bounds.pair_climb import climb
from specmoe.placement.bounds.pair_dispatch import best_dispatch
from specmoe.placement.bounds.pair_layer import PairLayer
from specmoe.placement.bounds.pair_loads import holders_of, least_overload, room_of_sets

# Nodes of one placement's dispatch, and how many placements are put aside.
_DISPATCH_NODES = 20_000
_MOST_ASIDE = 1000
# Prices take so many steps before anything is settled, while pairs are open, and after, where ranks are left.
_FIRST_STEPS, _STEPS, _LAST_STEPS, _FEWEST_LEFT = 300, 10, 100, 3
# With so few columns left a rank takes them before any more pairs are settled.
_FEW_COLUMNS = 2


class PairFound(NamedTuple):
    """bound: nothing that keeps the ceilings costs less, but for what is put aside; cost: of the best found, or the
    limit it was to stay below; masks: int64 [R] and names: int64 [R, E], the placement and the ranks named, where
    `is_found`. aside: int64 [A, R] and least: int64 [A], placements whose dispatch is open, and their least cost.
    """

    bound: int
    cost: int
    masks: NDArray[np.int64]
    names: NDArray[np.int64]
    is_found: bool
    aside: NDArray[np.int64]
    least: NDArray[np.int64]


class _Choices(NamedTuple):
    """By depth: pair: int64, the one to settle, -1 where a rank takes a column; rank: int64, that rank; num and
    position: int64, how many there are to go through and which comes next; column and bound: int64 [., N], the column,
    or whether the pair is wanted, and what it costs at least.
    """

    pair: NDArray[np.int64]
    rank: NDArray[np.int64]
    num: NDArray[np.int64]
    position: NDArray[np.int64]
    column: NDArray[np.int64]
    bound: NDArray[np.int64]


@compiled
def search_pairs(layer: PairLayer, limit: int, work: int) -> PairFound:
    """The best that costs less than `limit`, within so many operations."""
    R, E = layer.loads.shape
    branches = [new_branch(layer) for _ in range(len(layer.pair) + R + 1)]
    values, choices = new_values(layer), _no_choices(layer, len(branches))
    room, bound_loads = room_of_sets(layer.ceiling), np.zeros(1 << R, dtype=np.int64)
    best, names, found = np.zeros(R, dtype=np.int64), np.zeros((R, E), dtype=np.int64), False
    aside, least, num_aside = np.zeros((_MOST_ASIDE, R), dtype=np.int64), np.zeros(_MOST_ASIDE, dtype=np.int64), 0
    # What nothing left open costs less than.
    open_bound, depth = limit, 0
    _divide(layer, branches[0], values, choices, 0, limit)
    while depth >= 0:
        at = choices.position[depth]
        if at >= choices.num[depth] or choices.bound[depth, at] >= limit:
            depth -= 1
            continue
        if values.work[0] >= work:
            open_bound = min(open_bound, _leave(choices, depth))
            continue
        branch = branches[depth + 1]
        copy_branch(branches[depth], branch)
        if not _enter(layer, branch, choices, depth):
            continue
        if not branch.is_taken.all():
            depth += 1
            _divide(layer, branch, values, choices, depth, limit)
            continue
        cost = _cost_below(layer, branch, limit)
        if cost >= limit or least_overload(layer, holders_of(branch.masks, E), room, bound_loads) > 0:
            continue
        dispatched = best_dispatch(layer, branch.masks, room, limit, _DISPATCH_NODES)
        if dispatched.is_found:
            limit, found = dispatched.cost, True
            best[:] = branch.masks
            names[:] = dispatched.names
        if not dispatched.is_complete and cost < limit:
            if num_aside < _MOST_ASIDE:
                aside[num_aside] = branch.masks
                least[num_aside] = cost
                num_aside += 1
            else:
                open_bound = min(open_bound, cost)
    return PairFound(min(open_bound, limit), limit, best, names, found, aside[:num_aside], least[:num_aside])


@compiled
def _no_choices(layer: PairLayer, depths: int) -> _Choices:
    most = max(2, (layer.end - layer.begin).max())
    return _Choices(
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros(depths, dtype=np.int64),
        np.zeros((depths, most), dtype=np.int64),
        np.zeros((depths, most), dtype=np.int64),
    )


@compiled
def _leave(choices: _Choices, depth: int) -> int:
    """Leave the choices open; what they cost at least."""
    bound = choices.bound[depth, choices.position[depth]]
    choices.position[depth] = choices.num[depth]
    return int(bound)


@compiled
def _enter(layer: PairLayer, branch: Branch, choices: _Choices, depth: int) -> bool:
    """Settle in the branch what comes next; False where nothing is left."""
    pair, chosen = choices.pair[depth], choices.column[depth, choices.position[depth]]
    choices.position[depth] += 1
    if pair < 0:
        take_column(layer, branch, choices.rank[depth], chosen)
        return True
    if chosen == 0:
        return keep_apart(layer, branch, pair)
    want_together(branch, pair)
    return True


@compiled
def _cost_below(layer: PairLayer, branch: Branch, limit: int) -> int:
    """What a placement costs whatever the loads; `limit` where it does not hold all that it has to."""
    if not branch.is_held.all() or (branch.pair_state == WANTED).any():
        return limit
    return int(least_cost(layer, branch.masks, holders_of(branch.masks, len(branch.is_held))))


@compiled
def _divide(layer: PairLayer, branch: Branch, values: Values, choices: _Choices, depth: int, limit: int) -> None:
    """Bound a branch, drop the columns that cost too much, and choose what to settle next; nothing if it costs too
    much itself.
    """
    choices.num[depth] = choices.position[depth] = 0
    total = bound_branch(layer, branch, values)
    if not drop_dear(branch, values, limit - total):
        return
    if len(branch.is_taken) - branch.is_taken.sum() >= _FEWEST_LEFT:
        steps = _STEPS if (branch.pair_state == OPEN).any() else _LAST_STEPS
        total = climb(layer, branch, values, total, limit, _FIRST_STEPS if depth == 0 else steps)
        if total >= limit:
            return
    rank = -1
    for other in range(len(branch.num)):
        if not branch.is_taken[other] and (rank < 0 or branch.num[other] < branch.num[rank]):
            rank = other
    choices.rank[depth], choices.pair[depth] = rank, -1
    if branch.num[rank] > _FEW_COLUMNS:
        choices.pair[depth] = _choose_pair(layer, branch, values, choices, depth, limit - total)
    if choices.pair[depth] >= 0:
        choices.num[depth] = 2
        choices.bound[depth, :2] = total
        return
    num = branch.num[rank]
    columns = branch.left[rank, :num].astype(np.int64)
    bounds = total - values.lowest[rank] + values.of_column[rank][columns]
    order = np.argsort(bounds, kind="mergesort")
    choices.num[depth] = num
    choices.column[depth, :num], choices.bound[depth, :num] = columns[order], bounds[order]


@compiled
def _choose_pair(layer: PairLayer, branch: Branch, values: Values, choices: _Choices, depth: int, room: int) -> int:
    """The open pair to settle, -1 where none raises the bound; its weaker side comes first.

    room: what the bound may rise by and no more.
    """
    chosen, best = -1, 0.0
    for p in range(len(layer.pair)):
        if branch.pair_state[p] == OPEN:
            apart, wanted = _rises(layer, branch, values, p, room)
            score = max(1.0, float(apart)) * max(1.0, float(wanted))
            if apart + wanted > 0 and score > best:
                chosen, best = p, score
                choices.column[depth, 0], choices.column[depth, 1] = int(apart > wanted), int(apart <= wanted)
    values.work[0] += len(layer.pair) * branch.num.sum()
    return chosen


@compiled
def _rises(layer: PairLayer, branch: Branch, values: Values, pair: int, room: int) -> tuple[int, int]:
    """By how much the bound rises, `room` at most, if the pair is kept apart and if it is wanted; under `static` about
    so much.
    """
    apart, wanted = 0, branch.credit[:, pair].sum()
    for rank in range(len(branch.num)):
        lowest_apart, lowest_wanted = values.lowest[rank] + room, values.lowest[rank] + room
        credit = branch.credit[rank, pair]
        for i in range(branch.num[rank]):
            column = branch.left[rank, i]
            value = values.of_column[rank, column]
            part = layer.columns[layer.begin[rank] + column] & layer.pair[pair]
            if part == layer.pair[pair]:
                lowest_wanted = min(lowest_wanted, value - credit)
                continue
            if part:
                lowest_apart, lowest_wanted = min(lowest_apart, value), min(lowest_wanted, value)
                continue
            lost = layer.tokens[rank, pair] - credit if layer.is_cover or values.is_saved[rank, pair] else 0
            lowest_apart = min(lowest_apart, value + lost)
            lowest_wanted = min(lowest_wanted, value - credit)
        apart += lowest_apart - values.lowest[rank]
        wanted += lowest_wanted - values.lowest[rank]
    return min(apart, room), min(wanted, room)
