"""One layer with replicas: fill the slots that are left, better the whole, choose the dispatch."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.plan import ReplicaChoice
from specmoe.placement.solvers.copies import Copies, Items, Network, add_copy, copies_from, costs_by_home
from specmoe.placement.solvers.copy_gains import copy_gains
from specmoe.placement.solvers.cover_anneal import anneal_copies
from specmoe.placement.solvers.cover_words import word_width
from specmoe.placement.solvers.dispatched import dispatched, served_load
from specmoe.placement.solvers.effort import annealed_items, annealing_share, meeting_pairs
from specmoe.placement.solvers.expert_sets import keep_loads, rows_by_expert
from specmoe.placement.solvers.layer_problem import LayerProblem
from specmoe.placement.solvers.stand_for_all import stand_for_all
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES

_NEGLIGIBLE_TOKENS = 0.02

# Temperatures are shares of the layer's tokens, times the dearest copy. Between rounds the homes follow the copies.
# Experts find together while it is hot: a start at a quarter of this heat ended 3 % dearer on gpt-oss-20b.
ANNEALING_ROUNDS = 20
_HOT, _COLD = 2e-2, 1e-4
# How often every pair of slots meets in a round while there are few slots: a move is priced rank by rank, so that more
# ranks allow for fewer.
_MEETINGS, _FEWEST_MEETINGS, _MEETINGS_TIMES_RANKS = 16, 8, 64
# Where all ranks are counted within one number, a move takes so little that half as many again are afforded.
_MORE_WITHIN_A_NUMBER = 1.5
# With several nodes who serves has to be found and not counted alone: a quarter was as good on gpt-oss-20b.
_LESS_WITH_NODES = 0.25
# Past so many ranks they become fewer again.
_MANY_RANKS = 16
# No loads told: each token goes to the nearest among equals.
_NEAREST = np.zeros(0)
# When copies settle, so many times more items stand for all.
_SETTLED = 4


def network_of(problem: LayerProblem) -> Network:
    """The machine as the compiled searches take it."""
    machine = problem.machine
    return Network(machine.node, machine.surcharge, machine.speed)


def items_of(problem: LayerProblem, homes_of_set: NDArray[np.float64]) -> Items:
    """The (home, set) pairs with a weight that counts, ordered by home; homes_of_set: float64 [S, R]."""
    which, home = np.nonzero(homes_of_set > _NEGLIGIBLE_TOKENS)
    return _gathered(problem, which, home, homes_of_set[which, home])


def heaviest_items(problem: LayerProblem, homes_of_set: NDArray[np.float64], limit: int) -> Items:
    """About `limit` of the items that stand for all: the heavy ones, and every n-th of the others for n of them."""
    which, home = np.nonzero(homes_of_set > _NEGLIGIBLE_TOKENS)
    weight = homes_of_set[which, home]
    chosen, standing_for = stand_for_all(weight, limit)
    items = _gathered(problem, which[chosen], home[chosen], standing_for)
    if len(chosen) < len(weight):
        pairs = weight.sum() * items.experts.shape[1]
        load = problem.load[: problem.num_logical_experts]
        keep_loads(items.weight, items.offsets, items.rows, load * (pairs / load.sum()))
    return items


def _gathered(
    problem: LayerProblem, which: NDArray[np.int64], home: NDArray[np.int64], weight: NDArray[np.float64]
) -> Items:
    """The items of sets `which` at `home`."""
    order = np.argsort(home, kind="stable")
    experts = np.ascontiguousarray(problem.sets.sets[which[order]])
    offsets, rows = rows_by_expert(experts, problem.num_logical_experts)
    return Items(experts, weight[order], home[order].astype(np.int32), offsets, rows)


def holds_of(problem: LayerProblem, rank_of_place: NDArray[np.int32]) -> NDArray[np.bool_]:
    """bool [R, E]: which rank holds which expert, one copy of each; rank_of_place: int32 [P]."""
    holds = np.zeros((problem.machine.ep_size, problem.num_logical_experts), dtype=np.bool_)
    holds[rank_of_place[: problem.num_logical_experts], np.arange(problem.num_logical_experts)] = True
    return holds


def fill_slots(problem: LayerProblem, holds: NDArray[np.bool_], homes_of_set: NDArray[np.float64]) -> Copies:
    """Give every free slot the replica that saves most, rank by rank; by load among those that save nothing."""
    copies, network = copies_from(holds), network_of(problem)
    free = problem.machine.slots - holds.sum(axis=1)
    if not free.any():
        return copies
    items = heaviest_items(problem, homes_of_set, _SETTLED * annealed_items(int(problem.machine.slots.sum())))
    tie_break = problem.load[: problem.num_logical_experts] / max(problem.load.sum(), 1.0)
    while free.any():
        gains = copy_gains(items, copies, network) + tie_break
        for rank in np.argsort(-np.where(copies.holds == 0, gains, -1.0).max(axis=1), kind="stable"):
            if free[rank]:
                expert = int(np.where(copies.holds[rank] == 0, gains[rank], -1.0).argmax())
                add_copy(copies, expert, rank)
                gains[:, expert] = tie_break[expert]
                free[rank] -= 1
    return copies


def anneal_rounds(
    problem: LayerProblem,
    copies: Copies,
    homes_of_set: NDArray[np.float64],
    turns: Iterable[int],
    seed: int,
) -> None:
    """Rounds `turns` of `ANNEALING_ROUNDS`, in place: ever colder, by the heaviest items."""
    slots = int(problem.machine.slots.sum())
    items = heaviest_items(problem, homes_of_set, annealed_items(slots))
    hottest = _HOT * annealing_share(slots) * float(items.weight.sum()) * problem.machine.dearest_copy
    cooling = (_COLD / _HOT) ** (1.0 / ANNEALING_ROUNDS)
    for turn in turns:
        anneal_copies(
            items,
            copies,
            network_of(problem),
            problem.cap.ceiling,
            OVERLOAD_PRICES[0],
            _proposals_per_round(problem),
            hottest * cooling**turn,
            hottest * cooling ** (turn + 1),
            False,
            _NEAREST,
            seed * ANNEALING_ROUNDS + turn,
        )


def settle(
    problem: LayerProblem,
    copies: Copies,
    homes_of_set: NDArray[np.float64],
    seed: int,
    *,
    ceiling: float,
    overload_price: float,
    effort: float = 1.0,
    choice: ReplicaChoice = "cover",
) -> None:
    """Anneal in place at the coldest temperature, by many items, to the best state; ceiling: pairs per speed; effort:
    the part of the usual proposals; choice: by which the dispatch evens out loads.
    """
    items = heaviest_items(problem, homes_of_set, _SETTLED * annealed_items(int(problem.machine.slots.sum())))
    heat = annealing_share(int(problem.machine.slots.sum()))
    cold = _COLD * heat * float(items.weight.sum()) * problem.machine.dearest_copy
    proposals, network = round(effort * _proposals_per_round(problem)), network_of(problem)
    load, _ = served_load(items, dispatched(items, copies, network, ceiling, choice), network, choice)
    anneal_copies(items, copies, network, ceiling, overload_price, proposals, cold, cold / 3, True, load, seed)


def _proposals_per_round(problem: LayerProblem) -> int:
    """Enough for every pair of slots to meet several times, within limits."""
    slots = int(problem.machine.slots.sum())
    ep_size = problem.machine.ep_size
    wanted = min(max(_MEETINGS_TIMES_RANKS // ep_size, _FEWEST_MEETINGS), _MEETINGS)
    wanted = wanted * _MANY_RANKS // max(ep_size, _MANY_RANKS)
    meetings = round(_affordable(problem) * wanted * annealing_share(slots))
    return meeting_pairs(slots, is_quick=_is_quick(problem)) * max(1, meetings)


def _affordable(problem: LayerProblem) -> float:
    """What the usual number of proposals is multiplied by, as quick as they are priced on this machine."""
    if problem.machine.node.max() > problem.machine.node.min():
        return _LESS_WITH_NODES
    return _MORE_WITHIN_A_NUMBER if _is_quick(problem) else 1.0


def _is_quick(problem: LayerProblem) -> bool:
    """Whether all ranks are counted within one number."""
    return word_width(problem.sets.sets.shape[1], problem.machine.ep_size) > 0


def copies_by_home(problem: LayerProblem, copies: Copies, *, cover: bool = True) -> NDArray[np.float32]:
    """float32 [S, R]: what a token of each set costs when it starts on each rank."""
    return costs_by_home(problem.sets.sets, cover, copies, network_of(problem))
