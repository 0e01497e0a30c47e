"""One layer under `tp`: placement and token table found together, judged on folds of requests that the table missed.

Homes and placement alternate: given where tokens start, swaps improve the placement; given the placement, tokens start
where it is cheapest for them, under prices that fill the ranks evenly. Random starts go on until
several have reached the same best end.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.options import SolveOptions
from specmoe.placement.solvers.cooling import cooling
from specmoe.placement.solvers.copies import Copies, set_copies
from specmoe.placement.solvers.effort import affordable_kicks, affordable_rounds, affordable_starts, annealed_swaps
from specmoe.placement.solvers.layer_problem import LayerProblem
from specmoe.placement.solvers.load_drift import expected_heaviest
from specmoe.placement.solvers.margins import Margins, Trial, best_trial, under_margin
from specmoe.placement.solvers.replicated_layer import (
    ANNEALING_ROUNDS,
    anneal_rounds,
    copies_by_home,
    fill_slots,
    holds_of,
    settle,
)
from specmoe.placement.solvers.row_sums import sum_over_tokens
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES
from specmoe.placement.solvers.token_rows import TokenRows
from specmoe.placement.solvers.token_table import TokenHomes, TokenTable, held_out_costs, held_out_homes, token_table

_TEMPERATURES = (0.03, 0.02, 0.01)
# So many starts that end alike, to such a part of their cost, are enough.
_SAME_ENDS, _SAME_END = 3, 1e-4
_ANNEALINGS, _FEW_SLOTS = 3, 60
# Seeds of layers follow each other.
_SEEDS_APART = 1009
_SEATINGS, _FEWEST_SEATINGS = 10, 4
_KICKED_TURNS, _KICKED_PATIENCE = 2, 20
# Single copies annealed from random placements, and proposals in those of `annealed_swaps`.
_ANNEALED_STARTS, _ANNEALED_LONGER = 3, 2
# The part of a layer's time for a placement to begin with, where annealing follows.
_STARTS_TIME = 0.3


@dataclass(frozen=True, kw_only=True)
class TpLayer:
    """table: None without token ids; cost_of_token: float32 [T], in copies under tables made without the token's own
    fold, the mean over all homes without token ids.
    """

    copies: Copies
    table: TokenTable | None
    cost_of_token: NDArray[np.float32]

    @cached_property
    def expected(self) -> float:
        """Copies per token."""
        return float(self.cost_of_token.mean(dtype=np.float64))


@dataclass
class _Search:
    """A state of the alternation: prices carry over from one step to the next."""

    problem: LayerProblem
    searched: LayerProblem
    tokens: NDArray[np.int64]
    rows: TokenRows | None
    price: NDArray[np.float64]

    @classmethod
    def under(
        cls,
        margin: float,
        problem: LayerProblem,
        searched: LayerProblem,
        tokens: NDArray[np.int64],
        rows: TokenRows | None,
    ) -> "_Search":
        """A search that keeps the ceiling of `margin`."""
        price = np.zeros(problem.machine.ep_size)
        return cls(under_margin(problem, margin), under_margin(searched, margin), tokens, rows, price)

    def homes_of_set(self, homes: TokenHomes | None) -> NDArray[np.float64]:
        """float64 [S, R]: how many tokens of each set that is searched start on each rank."""
        sets = self.searched.sets
        if homes is None or self.rows is None:
            return _anywhere(self.searched)
        return sum_over_tokens(self.rows.row_of_token[self.tokens], sets.set_of_token, homes.share, len(sets.sets))

    def seat(self, cost_of_set: NDArray[np.float32], temperature: float) -> TokenHomes | None:
        """Where tokens start when each set costs `cost_of_set` [S, R] by home; None without token ids."""
        if self.rows is None:
            return None
        total = sum_over_tokens(
            self.problem.sets.set_of_token, self.rows.raw_row_of_token, cost_of_set, self.rows.num_pairs
        )
        return held_out_homes(self.rows, total, self.price, temperature * self.problem.machine.dearest_copy)

    def expected(self, homes: TokenHomes | None, cost_of_set: NDArray[np.float32]) -> float:
        """Copies over all tokens."""
        return float((_anywhere(self.problem) * cost_of_set).sum()) if homes is None else homes.expected


def _anywhere(problem: LayerProblem) -> NDArray[np.float64]:
    """float64 [S, R]: every token anywhere with the same chance."""
    ep_size = problem.machine.ep_size
    tokens = np.bincount(problem.sets.set_of_token, minlength=len(problem.sets.sets))
    return np.repeat(tokens[:, None] / ep_size, ep_size, axis=1)


def solve_tp_layer(
    problem: LayerProblem,
    searched: LayerProblem,
    tokens: NDArray[np.int64],
    rows: TokenRows | None,
    redrawn: NDArray[np.float64],
    vocab_size: int,
    options: SolveOptions,
    *,
    margins: Margins,
    starts: int,
    seed: int,
) -> TpLayer:
    """The best layer found from random starts; rows is None where the profile has no token ids.

    searched: the same layer of the sample's rows `tokens` alone, which searches weigh; redrawn: float64 [B, E], each
    expert's pairs in redraws of the requests; starts: under each margin.
    """
    has_replicas = int(problem.machine.slots.sum()) > problem.num_logical_experts
    starting = options.ending_after(_STARTS_TIME) if has_replicas else options
    trials: list[Trial[tuple[_Search, NDArray[np.int32]]]] = []
    for margin in margins:
        if trials and options.is_over:
            break
        search = _Search.under(margin, problem, searched, tokens, rows)
        trials.append(_best_start(search, redrawn, starting, starts, seed))
    search, place = best_trial(trials, problem.machine.allowed_imbalance).found
    if not has_replicas:
        place = _kicked(search, _annealed(search, place, options, seed), options, seed)
    problem = search.problem
    search, copies = _best_replicas(search, place, options, seed)
    cost = copies_by_home(problem, copies)
    if rows is None:
        return TpLayer(copies=copies, table=None, cost_of_token=cost.mean(axis=1)[problem.sets.set_of_token])
    total = sum_over_tokens(problem.sets.set_of_token, rows.raw_row_of_token, cost, rows.num_pairs)
    scale = float(problem.machine.link.max()) or 1.0
    table = token_table(rows, total, search.price, scale, vocab_size)
    held_out = held_out_costs(rows, cost[problem.sets.set_of_token], total, search.price, scale)
    return TpLayer(copies=copies, table=table, cost_of_token=held_out)


def _best_start(
    search: _Search, redrawn: NDArray[np.float64], options: SolveOptions, starts: int, seed: int
) -> Trial[tuple[_Search, NDArray[np.int32]]]:
    """The best of `starts` random starts under the search's margin; the search goes on from its prices."""
    found: list[tuple[NDArray[np.int32], NDArray[np.float64], float]] = []
    for start in range(starts):
        if found and (options.is_over or _is_settled([cost for _, _, cost in found])):
            break
        found.append(_one_start(search, (seed, start)))
    place, search.price, cost = min(found, key=lambda run: (not search.problem.cap.is_kept(run[0]), run[2]))
    rank_of_expert = place[: search.problem.num_logical_experts]
    heaviest = expected_heaviest(redrawn, rank_of_expert, search.problem.machine.speed)
    return Trial(found=(search, place), copies=cost, heaviest=heaviest)


def _is_settled(costs: list[float]) -> bool:
    """Whether starts keep ending in the best end known, so that more of them would hardly find a better one."""
    return sum(cost <= min(costs) * (1 + _SAME_END) for cost in costs) >= _SAME_ENDS


def _one_start(
    search: _Search, seed: tuple[int, int], annealed: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.float64], float]:
    """A placement, the prices that go with it, and its expected cost; annealed: proposals before homes are known."""
    search.price = np.zeros(search.problem.machine.ep_size)
    place = search.problem.random_placement(np.random.default_rng(seed))
    homes: TokenHomes | None = None
    cost = np.zeros((0, 0), dtype=np.float32)
    for temperature in _TEMPERATURES:
        homes_of_set, proposals = search.homes_of_set(homes), 0 if len(cost) else annealed
        place = search.searched.search(homes_of_set, place, annealed=proposals, seed=seed[0] + seed[1])
        cost = search.problem.copies_by_home(place)
        homes = search.seat(cost, temperature)
    return place, search.price, search.expected(homes, cost)


def _annealed(search: _Search, place: NDArray[np.int32], options: SolveOptions, seed: int) -> NDArray[np.int32]:
    """The best of `place` and placements annealed anew, homes alternating; the search's prices go with it.

    Annealed for the homes of a placement they would end where it is, so they begin without any.
    """
    slots = int(search.problem.machine.slots.sum())
    proposals = _ANNEALED_LONGER * annealed_swaps(slots)
    if not proposals:
        return place
    cost = search.problem.copies_by_home(place)
    found = [(place, search.price, search.expected(search.seat(cost, _TEMPERATURES[-1]), cost))]
    for start in range(max(1, affordable_starts(_ANNEALED_STARTS, slots))):
        if options.is_over:
            break
        found.append(_one_start(replace(search), (seed, _SEEDS_APART + start), proposals))
    place, search.price, _ = min(found, key=lambda run: (not search.problem.cap.is_kept(run[0]), run[2]))
    return place


def _kicked(search: _Search, place: NDArray[np.int32], options: SolveOptions, seed: int) -> NDArray[np.int32]:
    """The placement bettered by searches that begin anew near it, homes alternating; the search's prices go with it."""
    kicks = affordable_kicks(int(search.problem.machine.slots.sum()))
    cost = search.problem.copies_by_home(place)
    homes = search.seat(cost, _TEMPERATURES[-1])
    best = search.expected(homes, cost)
    for turn in range(_KICKED_TURNS):
        if options.is_over:
            break
        own, homes_of_set = replace(search, price=search.price.copy()), search.homes_of_set(homes)
        kicked = own.searched.search(homes_of_set, place, patience=_KICKED_PATIENCE, kicks=kicks, seed=seed + turn)
        cost = own.problem.copies_by_home(kicked)
        homes = own.seat(cost, _TEMPERATURES[-1])
        if own.expected(homes, cost) >= best:
            break
        place, search.price, best = kicked, own.price, own.expected(homes, cost)
    return place


def _best_replicas(
    search: _Search, place: NDArray[np.int32], options: SolveOptions, seed: int
) -> tuple[_Search, Copies]:
    """The copies of the best annealing, and the state of its search; the one placement as it is without free slots.

    With few slots annealings end far apart, and several take no time.
    """
    slots = int(search.problem.machine.slots.sum())
    attempts = min(_ANNEALINGS, _FEW_SLOTS // slots) if slots > search.problem.num_logical_experts else 1
    found: list[tuple[_Search, Copies, float]] = []
    for attempt in range(max(1, attempts)):
        if found and options.is_over:
            break
        own = replace(search, price=search.price.copy())
        copies = _with_replicas(own, place, options, seed + attempt * _SEEDS_APART)
        cost = copies_by_home(search.problem, copies)
        found.append((own, copies, own.expected(own.seat(cost, _TEMPERATURES[-1]), cost)))
    best, copies, _ = min(found, key=lambda run: run[2])
    return best, copies


def _with_replicas(search: _Search, place: NDArray[np.int32], options: SolveOptions, seed: int) -> Copies:
    """Fill the free slots and anneal all copies, homes alternating; the placement as it is without free slots."""
    problem = search.problem
    holds = holds_of(problem, place)
    homes = search.seat(problem.copies_by_home(place), _TEMPERATURES[-1])
    copies = fill_slots(search.searched, holds, search.homes_of_set(homes))
    if int(problem.machine.slots.sum()) == problem.num_logical_experts:
        return copies
    filled = copies.holds.copy()
    seatings = max(_FEWEST_SEATINGS, affordable_rounds(_SEATINGS, int(problem.machine.slots.sum())))
    for turns in cooling(ANNEALING_ROUNDS, seatings, lambda: options.seconds_left):
        if options.is_over:
            break
        homes = search.seat(copies_by_home(problem, copies), _TEMPERATURES[-1])
        anneal_rounds(search.searched, copies, search.homes_of_set(homes), turns.tolist(), seed)
    if options.is_over:
        _keep_better(search, copies, filled)
        return copies
    homes = search.seat(copies_by_home(problem, copies), _TEMPERATURES[-1])
    settle(
        search.searched,
        copies,
        search.homes_of_set(homes),
        seed,
        ceiling=search.searched.cap.ceiling,
        overload_price=OVERLOAD_PRICES[0],
    )
    return copies


def _keep_better(search: _Search, copies: Copies, before: NDArray[np.uint8]) -> None:
    """Take the copies `before`, uint8 [R, E], where annealing that was cut short has not found better ones yet."""
    now, expected = copies.holds.copy(), []
    for holds in (now, before):
        set_copies(copies, holds)
        own, cost = replace(search, price=search.price.copy()), copies_by_home(search.problem, copies)
        expected.append(own.expected(own.seat(cost, _TEMPERATURES[-1]), cost))
    if expected[0] <= expected[1]:
        set_copies(copies, now)
