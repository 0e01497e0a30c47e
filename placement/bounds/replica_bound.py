"""A lower bound with replicas, for either replica choice: tokens' experts in parts, prices, and cheapest columns.

A token at home on h with experts s needs a cover of s less S_h by columns S_r of other ranks. For every part t of s

    copies  >=  |t - S_h| - sum over r != h of max(0, |S_r and t| - 1)
            =   |t| - sum over r of |S_r and t| + sum over r != h of [S_r meets t],

because each rank of the cover serves at least one expert of t, and more than one only where it holds more. Let every
token spread its weight over parts of its experts, weight(t, h) in all; summed, the copies of all tokens are at least

    sum over t of weight(t) |t| + sum over r of min over S of (sum over t of weight(t, not r) [S meets t] - p(S)),
    p(e) = sum over parts t with e of weight(t).

As every expert has a copy somewhere, any d(e) >= 0 may be added to p(e), and its sum to the bound. `column_search.py`
finds the minimum over columns. So p is what a copy is worth: an expert on every rank would earn it everywhere, which is
why large parts bound much without replicas and small ones with many. The spread is sought as in a game: tokens move to
the parts that bound them best against the mean of the columns so far, and columns answer; d rises for experts that no
column holds, and falls for those that several do.
The load cap is left out: loads that static or cover choices move between replicas are beyond this bound.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.column_search import Room, search_columns
from specmoe.placement.bounds.groups import weigh
from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.parts import Parts, parts_of, parts_per_set

# Weights are whole numbers of this part of a token, rounded down.
_UNIT = 1 / 64
_MOST_TOKENS = 2**31 * _UNIT / 16
_MOST_WEIGHTS = 20_000_000
_ROUNDS = 400
# It ends when so many rounds bring less than this share of the plan's cost.
_PATIENCE, _GAIN = 15, 2e-3
_INERTIA, _LEAST_INERTIA = 0.2, 0.05
_HOT, _COLD, _COOLING = 0.2, 0.03, 0.93
# The first step of d, as a share of all tokens, and how fast steps shrink.
_BONUS_STEP, _BONUS_DECAY = 0.002, 0.1
# Operations that one round takes beside the searches, on its own and per weight that a token can spread.
_WORK_PER_ROUND, _WORK_PER_WEIGHT = 500_000, 40


class _Game:
    """The state of both sides. spread: float64 [S, R, M], tokens of each set and home on each of the set's parts.

    met: float64 [N, R], how often a rank's columns so far meet a part; copies: float64 [E], how many they hold; bonus:
    float64 [E], the d of the module's text, in units.
    """

    def __init__(self, case: LayerCase) -> None:
        self.case = case
        self.parts: Parts = parts_of(case.sets, case.num_experts)
        self.columns = case.holds.astype(np.uint8)
        self.met = (self.parts.has @ self.columns.T > 0).astype(np.float64)
        self.copies = self.columns.sum(axis=0).astype(np.float64)
        self.bonus = np.zeros(case.num_experts)
        self.spread: NDArray[np.float64] | None = None

    def move_tokens(self, temperature: float) -> None:
        """Tokens move towards the parts that bound them best against the columns so far, or to none."""
        part = self.parts.part_of_set
        alone = self.parts.size - self.parts.has @ self.copies
        # [N, R] -> [S, R, M]: what each part proves for a token of the set by home.
        proves = (alone[:, None] + self.met.sum(axis=1, keepdims=True) - self.met)[part].transpose(0, 2, 1)
        best = np.maximum(proves.max(axis=2, keepdims=True), 0.0)
        share = np.exp((proves - best) / temperature)
        share /= share.sum(axis=2, keepdims=True) + np.exp(-best / temperature)
        wanted = share * self.case.homes_of_set[:, :, None]
        self.spread = wanted if self.spread is None else self.spread + _INERTIA * (wanted - self.spread)

    def answer(self, work_limit: int) -> tuple[float, int]:
        """The bound by where tokens are, and the work it took; columns become the cheapest ones found."""
        assert self.spread is not None
        weight = np.stack([self._weight_of_home(home) for home in range(self.case.ep_size)])
        total = weight.sum(axis=0)
        bonus = np.rint(self.bonus)
        price = np.rint(total @ self.parts.has.astype(np.float64)) + bonus
        bound, work = float(total @ self.parts.size + bonus.sum()), 0
        for rank in range(self.case.ep_size):
            weights = weigh(self.parts.groups, (total - weight[rank]).astype(np.int32))
            room = Room(int(self.case.slots[rank]), self.case.load, 0.0, np.inf)
            share = (work_limit - work) // (self.case.ep_size - rank)
            found = search_columns(self.parts.groups, weights, price, room, np.inf, True, share, 1)
            if found.num_found:
                self.columns[rank] = found.held[0]
            bound += found.bound
            work += found.work
        return bound * _UNIT, work

    def remember(self, turn: int) -> None:
        """Mix the columns into those so far; experts without a copy become dearer."""
        share = max(2.0 / (turn + 3), _LEAST_INERTIA)
        step = _BONUS_STEP * self.case.num_tokens / _UNIT / (1.0 + _BONUS_DECAY * turn)
        self.bonus = np.maximum(self.bonus + step * (1.0 - self.columns.sum(axis=0)), 0.0)
        self.met += share * ((self.parts.has @ self.columns.T > 0) - self.met)
        self.copies += share * (self.columns.sum(axis=0) - self.copies)

    def _weight_of_home(self, home: int) -> NDArray[np.float64]:
        """float64 [N]: whole units on each part of the tokens at `home`."""
        assert self.spread is not None
        units = np.floor(self.spread[:, home, :] / _UNIT)
        part, num_parts = self.parts.part_of_set.ravel(), len(self.parts.size)
        return np.bincount(part, weights=units.ravel(), minlength=num_parts).astype(np.float64)


def replica_bound(case: LayerCase, work_limit: int, is_over: Callable[[], bool]) -> float:
    """Copies over all tokens that no placement goes below, with replicas; within about `work_limit` operations.

    0 where the tokens are too many, or the work too little, to say more.
    """
    weights = len(case.sets) * case.ep_size * parts_per_set(case.sets.shape[1])
    round_work = _WORK_PER_ROUND + weights * _WORK_PER_WEIGHT
    if case.num_tokens > _MOST_TOKENS or weights > _MOST_WEIGHTS or work_limit < round_work:
        return 0.0
    game = _Game(case)
    best, before, work = 0.0, 0.0, 0
    for turn in range(_ROUNDS):
        game.move_tokens(max(_HOT * _COOLING**turn, _COLD))
        bound, spent = game.answer(work_limit - work)
        game.remember(turn)
        best = max(best, bound)
        work += spent + round_work
        if work >= work_limit or case.cost - best < 1.0 or is_over():
            break
        if turn % _PATIENCE == _PATIENCE - 1:
            if best - before < _GAIN * case.cost:
                break
            before = best
    return best
