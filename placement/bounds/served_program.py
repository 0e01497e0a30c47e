"""The best placement and dispatch of a layer of few experts by its replica choice, loads included, exactly: by CP-SAT.

For up to two experts a token on one node the rules are clauses over what ranks hold, x[r, e], and whom they name,
d[h, e, q]: one rank q that holds e for every home h, h itself wherever it holds e. The tokens {e, f} at home on h pay

    2 - x[h, e] - x[h, f] - sum over q != h of c[h, e, f, q],

c where q serves both: under `static` where both are named on q; under `cover` where any rank holds both, the one among
these that the rule takes. What no rank serves together goes where it is named. Unlike in `copies_program.py` loads are
those of a dispatch, so what is found keeps the cap, and what is proven holds for plans of that replica choice.
"""

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.copies_program import CopiesChoice, can_program
from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.served_choice import ServedChoice
from specmoe.placement.options import SolveOptions

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

# CP-SAT counts its work in deterministic seconds, which do not depend on the machine.
_WORK_PER_SECOND = 1e9
_LARGEST_SET = 2
# The best dispatch of one placement may take this part of the work.
_DISPATCH_SHARE = 4
_ROUNDING = 1e-6


def can_serve(case: LayerCase) -> bool:
    """Whether the rules are that simple, and the program small."""
    return case.sets.shape[1] <= _LARGEST_SET and int(case.node.max()) == 0 and can_program(case)


def best_served(case: LayerCase, relaxed: CopiesChoice, options: SolveOptions, work: int) -> ServedChoice:
    """The best of all, or as near as `work` operations come; relaxed: what `copies_program.py` proves, and
    where to begin.

    Where the placement found there has a dispatch that costs no more than its bound, no search is needed.
    """
    known = ServedChoice(bound=relaxed.bound, cost=case.cost if case.is_legal else np.inf)
    if relaxed.holds is not None:
        known = replace(
            dispatch_served(case, relaxed.holds, known, options, work // _DISPATCH_SHARE), bound=relaxed.bound
        )
    if known.cost <= known.bound or options.is_over:
        return known
    program = ServedProgram(case)
    program.begin(case.holds if known.holds is None else known.holds)
    return program.improve(known, options, work)


def dispatch_served(
    case: LayerCase, holds: NDArray[np.bool_], known: ServedChoice, options: SolveOptions, work: int
) -> ServedChoice:
    """The best dispatch of one placement, bool [R, E], or the known where that costs no more; the bound is on this
    placement alone, which costs no less than `known.bound`.
    """
    program = ServedProgram(case)
    program.keep(holds)
    return program.improve(known, options, work)


class ServedProgram:
    """holds[r][e] and named[h][e][q] are x and d; both[e, f, q]: whether q holds both, e before f."""

    def __init__(self, case: LayerCase) -> None:
        from ortools.sat.python import cp_model

        self.case = case
        self.model = cp_model.CpModel()
        self.ranks, experts = range(case.ep_size), range(case.num_experts)
        self.holds = [[self._bool() for _ in experts] for _ in self.ranks]
        for rank, slots in enumerate(case.slots):
            self.model.add(sum(self.holds[rank]) == int(slots))
        self._choose_columns()
        self.named = [[self._names(home, expert) for expert in experts] for home in self.ranks]
        self._cost: list[cp_model.LinearExprT] = []
        self._load: list[list[cp_model.LinearExprT]] = [[] for _ in self.ranks]
        for row, home in zip(*np.nonzero(case.homes_of_set), strict=True):
            self._serve(case.sets[row].tolist(), int(home), int(case.homes_of_set[row, home]))
        for load, ceiling in zip(self._load, case.ceiling, strict=True):
            self.model.add(sum(load) <= int(np.floor(ceiling)))

    def _bool(self) -> "cp_model.IntVar":
        return self.model.new_bool_var("")

    def _names(self, home: int, expert: int) -> list["cp_model.IntVar"]:
        """Which rank `home` names for `expert`: itself where it holds it."""
        names = [self.holds[home][expert] if rank == home else self._bool() for rank in self.ranks]
        self.model.add_exactly_one(names)
        for rank, name in enumerate(names):
            self.model.add_implication(name, self.holds[rank][expert])
        return names

    def _choose_columns(self) -> None:
        """Each rank takes one column; by them alone the linear relaxation is worth anything."""
        self.both: dict[tuple[int, int, int], cp_model.IntVar] = {}
        pairs = list(itertools.combinations(range(self.case.num_experts), 2))
        for rank, slots in enumerate(self.case.slots):
            columns = {
                chosen: self._bool() for chosen in itertools.combinations(range(self.case.num_experts), int(slots))
            }
            self.model.add_exactly_one(columns.values())
            for expert, holds in enumerate(self.holds[rank]):
                self.model.add(sum(one for chosen, one in columns.items() if expert in chosen) == holds)
            for first, second in pairs:
                both = self.both[first, second, rank] = self._bool()
                self.model.add(
                    sum(one for chosen, one in columns.items() if first in chosen and second in chosen) == both
                )

    def _serve(self, experts: list[int], home: int, tokens: int) -> None:
        """What the tokens of `experts` at home on `home` cost, and where they are served."""
        for expert in experts:
            self._cost.append(tokens - tokens * self.holds[home][expert])
        if len(experts) < _LARGEST_SET:
            self._load_named(experts[0], home, tokens)
            return
        first, second = sorted(experts)
        together = {rank: self._bool() for rank in self.ranks if rank != home}
        held = self.both[first, second, home] - self.holds[home][first] - self.holds[home][second]
        self.model.add(sum(together.values()) <= 1 + held)
        for rank, served in together.items():
            self._cost.append(-tokens * served)
            self.model.add_implication(served, self.both[first, second, rank])
        if self.case.replica_choice == "cover":
            self._take_cover(first, second, home, together)
            self._load_covered([first, second], home, together, tokens)
            return
        for expert in experts:
            for rank, served in together.items():
                self.model.add_implication(served, self.named[home][expert][rank])
            self._load_named(expert, home, tokens)

    def _load_named(self, expert: int, home: int, tokens: int) -> None:
        for rank, name in enumerate(self.named[home][expert]):
            self._load[rank].append(tokens * name)

    def _take_cover(self, first: int, second: int, home: int, together: "dict[int, cp_model.IntVar]") -> None:
        """Of the ranks that hold both, the one that is named for most takes them, of equals the first after home."""
        model, held = self.model, self.holds[home]
        names = [(self.named[home][first][rank], self.named[home][second][rank]) for rank in self.ranks]
        by_nearness = sorted(together, key=lambda rank: (rank - home) % self.case.ep_size)
        for at, rank in enumerate(by_nearness):
            served, both = together[rank], self.both[first, second, rank]
            model.add_bool_or(~both, held[first], held[second], *together.values())
            for nearer in by_nearness[:at]:
                gives_way = ~served, ~self.both[first, second, nearer]
                model.add_bool_or(*gives_way, *names[rank])
                model.add_bool_or(*gives_way, ~names[nearer][0])
                model.add_bool_or(*gives_way, ~names[nearer][1])
            for farther in by_nearness[at + 1 :]:
                gives_way = ~served, ~self.both[first, second, farther]
                model.add_bool_or(*gives_way, ~names[farther][0], names[rank][1])
                model.add_bool_or(*gives_way, ~names[farther][1], names[rank][0])

    def _load_covered(self, experts: list[int], home: int, together: "dict[int, cp_model.IntVar]", tokens: int) -> None:
        """The load of tokens that some rank serves whole, or that go where they are named."""
        for rank, served in together.items():
            self._load[rank].append(_LARGEST_SET * tokens * served)
        for expert in experts:
            for rank, name in enumerate(self.named[home][expert]):
                alone = name
                if rank != home:
                    alone = self._bool()
                    self.model.add_bool_or(~name, alone, *together.values())
                self._load[rank].append(tokens * alone)

    def keep(self, holds: NDArray[np.bool_]) -> None:
        """Let nothing but the dispatch be chosen; holds: bool [R, E]."""
        for variables, row in zip(self.holds, holds, strict=True):
            for variable, is_held in zip(variables, row, strict=True):
                self.model.add(variable == bool(is_held))

    def begin(self, holds: NDArray[np.bool_]) -> None:
        """Search near these first; holds: bool [R, E]."""
        for variables, row in zip(self.holds, holds, strict=True):
            for variable, is_held in zip(variables, row, strict=True):
                self.model.add_hint(variable, bool(is_held))

    def improve(self, known: ServedChoice, options: SolveOptions, work: int) -> ServedChoice:
        """What costs less than the known, with the bound on all that this program may choose."""
        from ortools.sat.python import cp_model

        cost = sum(self._cost)
        self.model.add(cost >= int(np.ceil(known.bound)))
        if np.isfinite(known.cost):
            self.model.add(cost <= int(known.cost) - 1)
        self.model.minimize(cost)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        # The linear relaxation of columns proves most of what is proven.
        solver.parameters.linearization_level = 2
        solver.parameters.random_seed = options.seed % (1 << 31)
        solver.parameters.max_deterministic_time = work / _WORK_PER_SECOND
        if options.seconds_left is not None:
            solver.parameters.max_time_in_seconds = options.seconds_left
        status = solver.solve(self.model)
        if status == cp_model.INFEASIBLE:
            return replace(known, bound=known.cost)
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return known
        names = [[[solver.boolean_value(one) for one in row] for row in rows] for rows in self.named]
        return ServedChoice(
            bound=max(known.bound, float(np.ceil(solver.best_objective_bound - _ROUNDING))),
            cost=float(solver.value(cost)),
            holds=np.array([[solver.boolean_value(one) for one in row] for row in self.holds], dtype=np.bool_),
            dispatch=np.array(names).argmax(axis=2).astype(np.int32),
        )
