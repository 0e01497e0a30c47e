"""What halves of moves cost is kept until a move changes their experts or ranks, in memory that grows with slots."""

import numpy as np

from specmoe.placement.solvers.anneal_state import Move
from specmoe.placement.solvers.copies import copies_from
from specmoe.placement.solvers.known_halves import foreseen_cost, move_slots, note_cost, nothing_known


def spread(ep_size, experts, copies):
    """bool [R, E]: the copies of each expert on the ranks that follow each other."""
    holds = np.zeros((ep_size, experts), dtype=np.bool_)
    for copy in range(copies):
        holds[(np.arange(experts) + copy) % ep_size, np.arange(experts)] = True
    return holds


def test_costs_are_kept_by_half_and_forgotten_with_the_slots_that_move():
    halves = nothing_known(copies_from(spread(4, 8, 1)))
    first, second, replacement = Move(0, 0, 1, 1), Move(2, 2, 3, 3), Move(0, 4, 0, 5)
    for move, cost in ((first, 1.0), (second, 10.0), (replacement, 100.0)):
        note_cost(halves, move, np.array([cost, 2.0 * cost]))
    assert [foreseen_cost(halves, move) for move in (first, second, replacement)] == [3.0, 30.0, 300.0]
    # The other half of each is known from another move.
    assert foreseen_cost(halves, Move(0, 0, 1, 5)) == -np.inf
    move_slots(halves, first)
    assert foreseen_cost(halves, Move(0, 1, 1, 0)) == -np.inf
    assert [foreseen_cost(halves, move) for move in (second, replacement)] == [30.0, 300.0]
    move_slots(halves, replacement)
    assert foreseen_cost(halves, Move(0, 5, 0, 4)) == -np.inf
    note_cost(halves, Move(0, 5, 1, 0), np.array([1.0, 1.0]))
    assert foreseen_cost(halves, Move(0, 5, 1, 0)) == 2.0
    assert foreseen_cost(halves, second) == 30.0


def test_a_thousand_experts_on_many_ranks_take_a_few_megabytes():
    halves = nothing_known(copies_from(spread(256, 1024, 1)))
    assert halves.cost.nbytes + halves.slot.nbytes < 8 << 20
