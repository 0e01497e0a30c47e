"""The best choice of one column per rank, exactly: set partitioning by OR-Tools' CP-SAT over the columns that matter.

A choice that costs less than `target` has no column on a rank of kind k whose reduced cost is above

    lowest[k] + target - bound:

all others cost at least their lowest, and these add up to the bound. So a list of those columns, from
`column_search.py`, either holds the best choice of all, or proves that none costs less than the target. The target
starts just above the bound, where the list is short, and moves away from it until a choice is found.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.column_search import search_columns
from specmoe.placement.bounds.price_ascent import Ascent
from specmoe.placement.bounds.rank_problem import RankProblem
from specmoe.placement.options import SolveOptions

# CP-SAT counts its work in deterministic seconds, which do not depend on the machine.
_WORK_PER_SECOND = 1e9
_MOST_COLUMNS = 20_000
# The first target, as a share above the bound.
_FIRST_REACH = 1e-3
_FURTHER = 1.5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """bound: no choice costs less; rank_of_expert: int32 [E], the choice found that costs less than the one known, or
    None; is_best: whether nothing costs less than it, or than the one known where none is found.
    """

    bound: float
    rank_of_expert: NDArray[np.int32] | None
    is_best: bool


def best_choice(problem: RankProblem, ascent: Ascent, known: float, options: SolveOptions, work: int) -> Choice:
    """The best of all choices that cost less than `known`; within about `work` operations at each target."""
    bound, reach = ascent.bound, max(_FIRST_REACH * abs(ascent.bound), 1.0)
    while bound < known and not options.is_over:
        target = min(known, np.ceil(ascent.bound) + reach)
        columns = _columns_below(problem, ascent, target, work)
        if columns is None:
            return Choice(bound=bound, rank_of_expert=None, is_best=False)
        choice = _choose(problem, columns, bound, target, options, work)
        if choice.rank_of_expert is not None or choice.bound < target:
            return choice
        bound, reach = target, _FURTHER * reach
    return Choice(bound=bound, rank_of_expert=None, is_best=bound >= known)


def _columns_below(problem: RankProblem, ascent: Ascent, target: float, work: int) -> list[NDArray[np.uint8]] | None:
    """Per kind of rank, uint8 [M, E], all columns that a choice below `target` could use; None where too many."""
    columns = []
    for kind, low in zip(problem.kinds, ascent.lowest, strict=True):
        threshold = float(low) + target - ascent.bound
        found = search_columns(
            problem.groups, kind.weights, ascent.price, kind.room, threshold, False, work, _MOST_COLUMNS
        )
        if not found.is_complete or found.num_found > _MOST_COLUMNS:
            return None
        columns.append(found.held[: found.num_found])
    return columns


def _choose(
    problem: RankProblem,
    columns: list[NDArray[np.uint8]],
    bound: float,
    target: float,
    options: SolveOptions,
    work: int,
) -> Choice:
    """The best choice from `columns` that costs less than `target`; bound: what is known to be its least cost."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    covering: list[list[cp_model.IntVar]] = [[] for _ in range(problem.num_experts)]
    chosen: list[list[cp_model.IntVar]] = []
    terms = []
    for kind, (ranks, held) in enumerate(zip(problem.kinds, columns, strict=True)):
        variables = [model.new_bool_var("") for _ in range(len(held))]
        model.add(sum(variables) == ranks.count)
        for variable, cost, column in zip(variables, problem.costs(kind, held), held, strict=True):
            terms.append(int(cost) * variable)
            for expert in np.flatnonzero(column):
                covering[expert].append(variable)
        chosen.append(variables)
    for variables in covering:
        model.add_exactly_one(variables)
    model.add(sum(terms) >= int(np.ceil(bound)))
    model.add(sum(terms) <= int(np.ceil(target)) - 1)
    model.minimize(sum(terms))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = options.seed % (1 << 31)
    solver.parameters.max_deterministic_time = work / _WORK_PER_SECOND
    if options.seconds_left is not None:
        solver.parameters.max_time_in_seconds = options.seconds_left
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Choice(bound=target, rank_of_expert=None, is_best=True)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Choice(bound=bound, rank_of_expert=None, is_best=False)
    used = [held[[bool(solver.value(v)) for v in variables]] for held, variables in zip(columns, chosen, strict=True)]
    proven = max(bound, solver.best_objective_bound)
    return Choice(bound=proven, rank_of_expert=_ranks(problem, used), is_best=status == cp_model.OPTIMAL)


def _ranks(problem: RankProblem, used: list[NDArray[np.uint8]]) -> NDArray[np.int32]:
    """int32 [E]: the rank of each expert when the ranks of each kind take `used[kind]`, uint8 [count, E], in order."""
    rank_of_expert = np.full(problem.num_experts, -1, dtype=np.int32)
    taken = np.zeros(len(problem.kinds), dtype=np.int64)
    for rank, kind in enumerate(problem.kind_of_rank):
        rank_of_expert[used[kind][taken[kind]] == 1] = rank
        taken[kind] += 1
    return rank_of_expert
