"""What each half of a move of copies cost, and did to loads, when it was last priced.

A half is an expert that leaves a rank for another, or leaves or joins one alone. Only a copy can leave, so what is kept
grows with slots times ranks, not with experts times ranks times ranks.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.solvers.anneal_state import Move
from specmoe.placement.solvers.copies import Copies, Network

# Shifts of loads grow with the square of the ranks; with more numbers of them in a layer none is kept.
_MOST_SHIFTS = 1 << 24


class KnownHalves(NamedTuple):
    """slot: int32 [R, E], the number of an expert's copy on a rank, -1 where there is none.

    cost: float64 [C], by `_cell`, -inf where it is not known, so worth pricing; shift: float32 [C, R], of all loads,
    where has_shift: bool [C]. These two have no rows where they would take too much memory.
    """

    slot: NDArray[np.int32]
    cost: NDArray[np.float64]
    has_shift: NDArray[np.bool_]
    shift: NDArray[np.float32]


@compiled
def nothing_known(copies: Copies) -> KnownHalves:
    """Nothing but the slots."""
    ep_size, num_experts = copies.holds.shape
    slot, num_slots = np.full((ep_size, num_experts), -1, dtype=np.int32), 0
    for rank in range(ep_size):
        for expert in range(num_experts):
            if copies.holds[rank, expert]:
                slot[rank, expert] = num_slots
                num_slots += 1
    cells = (num_slots + num_experts) * ep_size
    kept = cells if cells * ep_size <= _MOST_SHIFTS else 0
    has_shift = np.zeros(kept, dtype=np.bool_)
    return KnownHalves(slot, np.full(cells, -np.inf), has_shift, np.empty((kept, ep_size), dtype=np.float32))


@compiled
def _cell(halves: KnownHalves, expert: int, source: int, to: int) -> int:
    """Where the half is kept by which `expert` leaves `source` for `to`, or leaves or joins it alone where these are
    one: copies that leave first, R cells for each slot, then experts that join.
    """
    ep_size, num_experts = halves.slot.shape
    slot = halves.slot[source, expert]
    if slot >= 0:
        return int(slot * ep_size + to)
    return int(len(halves.cost) - (source + 1) * num_experts + expert)


@compiled
def foreseen_cost(halves: KnownHalves, move: Move) -> float:
    """What the two halves of a move cost; -inf where that is unknown."""
    of_a = halves.cost[_cell(halves, move.a, move.i, move.j)]
    return float(of_a + halves.cost[_cell(halves, move.b, move.j, move.i)])


@compiled
def foreseen_overload(
    halves: KnownHalves, move: Move, network: Network, load: NDArray[np.float64], ceiling: float, over: float
) -> float:
    """How the overload, now `over`, changes by what the two halves did to loads; -inf where that is unknown."""
    if len(halves.has_shift) == 0:
        return -np.inf
    of_a, of_b = _cell(halves, move.a, move.i, move.j), _cell(halves, move.b, move.j, move.i)
    if not (halves.has_shift[of_a] and halves.has_shift[of_b]):
        return -np.inf
    shift, speed, then = halves.shift, network.speed, 0.0
    for rank in range(len(load)):
        then += max(0.0, (load[rank] + shift[of_a, rank] + shift[of_b, rank]) / speed[rank] - ceiling)
    return then - over


@compiled
def note_cost(halves: KnownHalves, move: Move, cost_of: NDArray[np.float64]) -> None:
    """Keep what a move costs; cost_of: float64 [2], by the items of a and by those of b."""
    halves.cost[_cell(halves, move.a, move.i, move.j)] = cost_of[0]
    halves.cost[_cell(halves, move.b, move.j, move.i)] = cost_of[1]


@compiled
def note_shift(halves: KnownHalves, move: Move, shift_of: NDArray[np.float64]) -> None:
    """Keep what a move shifts; shift_of: float64 [2, R], by the items of a and by those of b."""
    if len(halves.has_shift) == 0:
        return
    of_a, of_b = _cell(halves, move.a, move.i, move.j), _cell(halves, move.b, move.j, move.i)
    halves.shift[of_a], halves.shift[of_b] = shift_of[0], shift_of[1]
    halves.has_shift[of_a] = halves.has_shift[of_b] = True


@compiled
def move_slots(halves: KnownHalves, move: Move) -> None:
    """Carry out a move: what was known of its experts on the ranks that it changes is known no longer."""
    _replace(halves, move.i, move.a, move.b)
    if move.i != move.j:
        _replace(halves, move.j, move.b, move.a)


@compiled
def _replace(halves: KnownHalves, rank: int, gone: int, new: int) -> None:
    """Let the slot of `gone` on `rank` hold `new`."""
    ep_size = halves.slot.shape[0]
    slot = halves.slot[rank, gone]
    halves.slot[rank, gone], halves.slot[rank, new] = -1, slot
    joins = _cell(halves, gone, rank, rank)
    halves.cost[joins] = -np.inf
    halves.cost[slot * ep_size : (slot + 1) * ep_size] = -np.inf
    if len(halves.has_shift) > 0:
        halves.has_shift[joins] = False
        halves.has_shift[slot * ep_size : (slot + 1) * ep_size] = False
