"""End one layer: with the homes that the plan's tables give the profile, choose the dispatch and keep the load cap."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.plan import ReplicaChoice
from specmoe.placement.solvers.copies import Copies, Items, Network
from specmoe.placement.solvers.dispatched import dispatched, served_load
from specmoe.placement.solvers.layer_problem import LayerProblem
from specmoe.placement.solvers.least_load import least_load
from specmoe.placement.solvers.replicated_layer import (
    ANNEALING_ROUNDS,
    anneal_rounds,
    heaviest_items,
    items_of,
    network_of,
    settle,
)
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES

# Loads this close above the ceiling are rounding.
_TOLERANCE = 1e-9
# Copies mostly keep the cap after a few moves; the first repair makes so many, the others all that settling takes.
_REPAIR_EFFORTS = (0.25, 1.0, 1.0, 1.0)
# Where these end above the cap, copies are annealed anew, so many times: another end may keep it.
_ANEW = 4
# Items that stand for all when the dispatch is chosen.
_DISPATCHED_ITEMS = 50_000


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """A layer's placement. holds: bool [R, E]; dispatch: int16 [R, E] for either replica choice; cost_of_finish:
    how many more copies per token, by the cover choice, than the search left: what keeping the cap has cost.
    """

    holds: NDArray[np.bool_]
    static_dispatch: NDArray[np.int16]
    cover_dispatch: NDArray[np.int16]
    cost_of_finish: float


def finish_layer(
    problem: LayerProblem,
    copies: Copies,
    homes: NDArray[np.int32],
    choice: ReplicaChoice,
    seed: int,
    *,
    may_search: bool = False,
) -> LayerChoice:
    """The layer with the best dispatch found; homes: int32 [T], where the plan seats the sample's tokens.

    Where `choice` puts a rank above the cap that the plan must keep, copies move until it does not, if they can;
    may_search: whether they are annealed anew where moving a few does not do.
    """
    sets = problem.sets
    cells = sets.set_of_token.astype(np.int64) * problem.machine.ep_size + homes
    homes_of_set = np.bincount(cells, minlength=len(sets.sets) * problem.machine.ep_size).astype(np.float64)
    homes_of_set = homes_of_set.reshape(-1, problem.machine.ep_size)
    items, network = items_of(problem, homes_of_set), network_of(problem)
    weighed = heaviest_items(problem, homes_of_set, _DISPATCHED_ITEMS)

    def end() -> _Ended:
        best = dispatched(weighed, copies, network, problem.cap.ceiling, choice)
        return _Ended(best, _served(items, best, network, choice))

    before = _served(items, copies, network, "cover").cost
    least = ended = end()
    for repair, effort in enumerate(_repairs(problem, may_search)):
        if ended.is_within(problem.allowed_ceiling):
            break
        if repair >= len(_REPAIR_EFFORTS):
            anneal_rounds(problem, copies, homes_of_set, range(ANNEALING_ROUNDS), seed + repair)
        ceiling = problem.allowed_ceiling * (1.0 - 0.01 * min(repair, len(_REPAIR_EFFORTS) - 1))
        price = OVERLOAD_PRICES[1]
        settle(
            problem,
            copies,
            homes_of_set,
            seed + repair,
            ceiling=ceiling,
            overload_price=price,
            effort=effort,
            choice=choice,
        )
        ended = end()
        least = min(least, ended, key=lambda one: one.served.relative_load.max())
    best = ended if ended.is_within(problem.allowed_ceiling) else least
    other_choice: ReplicaChoice = "static" if choice == "cover" else "cover"
    other = dispatched(weighed, best.copies, network, problem.cap.ceiling, other_choice)
    static, cover = (best.copies, other) if choice == "static" else (other, best.copies)
    after = best.served.cost if choice == "cover" else _served(items, cover, network, "cover").cost
    return LayerChoice(
        holds=best.copies.holds.astype(np.bool_),
        static_dispatch=static.dispatch,
        cover_dispatch=cover.dispatch,
        cost_of_finish=after - before,
    )


def _repairs(problem: LayerProblem, may_search: bool) -> tuple[float, ...]:
    """The efforts of the repairs that may help: none without replicas, no search for what no placement reaches."""
    machine, E = problem.machine, problem.num_logical_experts
    if int(machine.slots.sum()) == E:
        return ()
    least = least_load(problem.load[:E].astype(np.int64), machine.slots, machine.speed)
    return _REPAIR_EFFORTS + (1.0,) * (_ANEW if may_search and least.heaviest <= machine.allowed_imbalance else 0)


class _Served(NamedTuple):
    """relative_load: float64 [R], the pairs that each rank serves, over its speed; cost: copies per token."""

    relative_load: NDArray[np.float64]
    cost: float


class _Ended(NamedTuple):
    """Copies with their dispatch, and what they serve by it."""

    copies: Copies
    served: _Served

    def is_within(self, ceiling: float) -> bool:
        """Whether no rank is above it, in pairs per unit of speed."""
        return bool(self.served.relative_load.max() <= ceiling * (1 + _TOLERANCE))


def _served(items: Items, copies: Copies, network: Network, choice: ReplicaChoice) -> _Served:
    load, total = served_load(items, copies, network, choice)
    return _Served(load / network.speed, total / items.weight.sum())
