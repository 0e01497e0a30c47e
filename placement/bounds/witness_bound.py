"""A lower bound for many experts, with and without replicas: tokens call witnesses, ranks share what is worth most.

With any witnesses U of each token (`witnesses.py`), summed over all tokens,

    tokens + copies  >=  number of witnesses  -  sum over v < w of pairs[v, w] min(1, shared[v, w]),

pairs[v, w] the tokens with both among their witnesses; and `shared_ranks.py` bounds the sum over all placements. It is
sought as in a game: tokens call the witnesses that prove most at the sharing so far, and the sharing moves to what the
witnesses so far, on average, make worth most. Averages of such bounds are bounds; later turns weigh more.
It takes one pass over the tokens and some eigenvectors of a matrix of E + R a turn, so it does for hundreds of experts.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.shared_ascent import SharedAscent
from specmoe.placement.bounds.shared_ranks import Matrix, RankLimits, most_worth, shared_by
from specmoe.placement.bounds.witnesses import call_witnesses, seated_members

_MOST_TURNS = 200
# Steps of the sharing in a turn, and with how many turns they are worth it. How far tokens follow it.
_STEPS = ((20, 15), (10, 6), (5, 3), (2, 0))
_FOLLOW = 0.2
# Operations, about a nanosecond each: of a token in a turn and of each pair of its vertices; of a step, of each entry
# of its matrix, and of each product of entries.
_WORK_PER_TOKEN, _WORK_PER_PAIR = 50, 1
_WORK_PER_STEP, _WORK_PER_ENTRY, _WORK_PER_PRODUCT = 40_000, 30, 0.1
_EPSILON = float(np.finfo(np.float64).eps)


def witness_bound(case: LayerCase, work_limit: int, is_over: Callable[[], bool]) -> float:
    """Copies over all tokens with the case's homes that no placement goes below; within about `work_limit` operations.

    0 where the work does not do for a turn.
    """
    members, tokens = seated_members(case)
    return _ranks_met(case, members, tokens, work_limit, is_over)


def witness_bound_anywhere(case: LayerCase, work_limit: int, is_over: Callable[[], bool]) -> float:
    """The same if every token may start on the best rank for it, without replicas."""
    return _ranks_met(case, case.sets, case.tokens_of_set.astype(np.float64), work_limit, is_over)


def turn_work(members: NDArray[np.int32], num_vertices: int, steps: int) -> int:
    """Roughly the operations of a turn."""
    tokens = len(members) * (_WORK_PER_TOKEN + _WORK_PER_PAIR * members.shape[1] ** 2)
    step = _WORK_PER_STEP + _WORK_PER_ENTRY * num_vertices**2 + _WORK_PER_PRODUCT * num_vertices**3
    return int(tokens + steps * step)


def steps_of_turn(members: NDArray[np.int32], num_vertices: int, work_limit: int) -> int:
    """How many steps the sharing moves in a turn."""
    return next(steps for steps, turns in _STEPS if work_limit >= turns * turn_work(members, num_vertices, steps))


def _ranks_met(
    case: LayerCase,
    members: NDArray[np.int32],
    tokens: NDArray[np.float64],
    work_limit: int,
    is_over: Callable[[], bool],
) -> float:
    """How many ranks tokens meet beyond one each, at least; members: int32 [N, m], tokens: float64 [N]."""
    limits, start = RankLimits.of(case), shared_by(case.holds)
    steps = steps_of_turn(members, len(start), work_limit)
    turns = min(work_limit // turn_work(members, len(start), steps), _MOST_TURNS)
    ascent, followed, pairs = SharedAscent(limits, start), start, np.zeros_like(start)
    best, called, weight = 0.0, 0.0, 0
    for turn in range(1, turns + 1):
        weight += turn
        called += call_witnesses(members, turn * tokens, followed.astype(np.float32), pairs)
        worth: Matrix = (pairs + pairs.T) / (2 * weight)
        ascent.climb(worth, steps)
        met = called / weight * (1.0 - 2.0 * _EPSILON) - most_worth(limits, worth, ascent.smooth, ascent.price)
        best = max(best, met - float(tokens.sum()))
        followed = followed + _FOLLOW * (ascent.shared - followed)
        if case.cost - best < 1.0 or is_over():
            break
    return best
