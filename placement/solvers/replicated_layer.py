"""One layer with replicas: fill the slots that are left, better the whole, choose the dispatch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.solvers.copies import Copies, Items, Network, add_copy, copies_from, costs_by_home, serve_items
from specmoe.placement.solvers.copy_search import anneal_copies, copy_gains
from specmoe.placement.solvers.dispatch_search import improve_dispatch
from specmoe.placement.solvers.expert_sets import rows_by_expert
from specmoe.placement.solvers.layer_problem import LayerProblem
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES

_NEGLIGIBLE_TOKENS = 0.02
_SPREAD_PRICE = 0.02
_DISPATCH_PASSES = 6


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """A layer's placement. holds: bool [R, E]; dispatch: int16 [R, E] by replica choice, 'static' and 'cover'."""

    holds: NDArray[np.bool_]
    static_dispatch: NDArray[np.int16]
    cover_dispatch: NDArray[np.int16]


def network_of(problem: LayerProblem) -> Network:
    """The machine as the compiled searches take it."""
    machine = problem.machine
    return Network(machine.node, machine.surcharge, machine.speed)


def items_of(problem: LayerProblem, homes_of_set: NDArray[np.float64]) -> Items:
    """The (home, set) pairs with a weight that counts, ordered by home; homes_of_set: float64 [S, R]."""
    home, which = np.nonzero(homes_of_set.T > _NEGLIGIBLE_TOKENS)
    experts = np.ascontiguousarray(problem.sets.sets[which])
    offsets, rows = rows_by_expert(experts, problem.num_logical_experts)
    return Items(experts, homes_of_set[which, home], home.astype(np.int32), offsets, rows)


def holds_of(problem: LayerProblem, rank_of_place: NDArray[np.int32]) -> NDArray[np.bool_]:
    """bool [R, E]: which rank holds which expert, one copy of each; rank_of_place: int32 [P]."""
    holds = np.zeros((problem.machine.ep_size, problem.num_logical_experts), dtype=np.bool_)
    holds[rank_of_place[: problem.num_logical_experts], np.arange(problem.num_logical_experts)] = True
    return holds


def fill_slots(problem: LayerProblem, holds: NDArray[np.bool_], homes_of_set: NDArray[np.float64]) -> Copies:
    """Give every free slot the replica that saves most, rank by rank; by load among those that save nothing."""
    copies, network = copies_from(holds), network_of(problem)
    items = items_of(problem, homes_of_set)
    tie_break = problem.load[: problem.num_logical_experts] / max(problem.load.sum(), 1.0)
    free = problem.machine.slots - holds.sum(axis=1)
    while free.any():
        gains = copy_gains(items, copies, network) + tie_break
        for rank in np.argsort(-np.where(copies.holds == 0, gains, -1.0).max(axis=1), kind="stable"):
            if free[rank]:
                expert = int(np.where(copies.holds[rank] == 0, gains[rank], -1.0).argmax())
                add_copy(copies, expert, rank)
                gains[:, expert] = tie_break[expert]
                free[rank] -= 1
    return copies


def anneal(
    problem: LayerProblem,
    copies: Copies,
    homes_of_set: NDArray[np.float64],
    *,
    proposals: int,
    hot: float,
    cold: float,
    seed: int,
) -> None:
    """Better the copies in place; hot, cold: temperatures as a share of the layer's tokens."""
    items = items_of(problem, homes_of_set)
    tokens = float(items.weight.sum())
    ceiling = problem.cap.ceiling
    network = network_of(problem)
    for overload_price in OVERLOAD_PRICES:
        anneal_copies(items, copies, network, ceiling, overload_price, proposals, hot * tokens, cold * tokens, seed)
        if rank_loads(items, copies, network, cover=True).max() <= ceiling * (1 + 1e-9):
            break


def rank_loads(items: Items, copies: Copies, network: Network, *, cover: bool) -> NDArray[np.float64]:
    """float64 [R]: the pairs that each rank serves, over its speed."""
    load = np.zeros(len(network.node))
    served = np.zeros(items.experts.shape, dtype=np.int16)
    serve_items(items, cover, copies, network, served, np.zeros(len(items.experts)), load)
    relative: NDArray[np.float64] = load / network.speed
    return relative


def copies_by_home(problem: LayerProblem, copies: Copies, *, cover: bool = True) -> NDArray[np.float64]:
    """float64 [S, R]: what a token of each set costs when it starts on each rank."""
    return costs_by_home(problem.sets.sets, cover, copies, network_of(problem))


def choose_dispatch(problem: LayerProblem, copies: Copies, homes_of_set: NDArray[np.float64]) -> LayerChoice:
    """The layer with the best dispatch found for either replica choice."""
    items, network, ceiling = items_of(problem, homes_of_set), network_of(problem), problem.cap.ceiling
    holds = copies.holds.astype(np.bool_)
    best = []
    for cover in (False, True):
        state = copies_from(holds)
        improve_dispatch(items, cover, state, network, ceiling, OVERLOAD_PRICES[1], _SPREAD_PRICE, _DISPATCH_PASSES)
        best.append(state.dispatch)
    return LayerChoice(holds=holds, static_dispatch=best[0], cover_dispatch=best[1])
