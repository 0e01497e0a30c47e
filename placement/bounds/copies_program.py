"""The best placement with replicas of a layer of few experts, exactly: an integer program over columns, by HiGHS.

One binary per rank and column: z[r, S], one column per rank, every expert in one at least. A token of set s at home
on h has u = s less S_h unserved, and pays for blocks of u that leave none of it out; a block v of several experts needs
a rank that holds them all:

    sum over blocks v with e of b[h, s, u, v]  >=  sum over columns S that leave u of z[h, S]    for e in u,
    b[h, s, u, v]  =  sum over ranks q of b[h, s, u, v, q],
    b[h, s, u, v, q]  <=  sum over columns S with v of z[q, S].

That is the best cover; the `cover` rule, which takes the largest block first, pays the same up to three experts, and
`static` pays no less. By columns the linear relaxation is close, which it is not by single experts. Loads: a rank
serves its blocks, its own tokens' pairs at home, and a share of the pairs that are served one by one; none serves more
than its ceiling. A rule may not reach these shares, so the bound holds, and a placement found has to be tried.
"""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.pair_layer import MOST_COLUMNS, count_columns
from specmoe.placement.options import SolveOptions

# What makes a program small, beside few columns: tokens' blocks.
_MOST_BLOCKS = 20_000
# The solver's own tolerances, as a share of the cost.
_TOLERANCE = 1e-6
# Operations that a node takes per entry of the program, and the nodes that are worth it at least.
_WORK_PER_ENTRY, _FEWEST_NODES = 5_000, 10
_STATUS_INFEASIBLE = 2


@dataclass(frozen=True, kw_only=True)
class CopiesChoice:
    """bound: no placement costs less; holds: bool [R, E], one that costs less than the plan's, if one is found."""

    bound: float
    holds: NDArray[np.bool_] | None


def can_program(case: LayerCase) -> bool:
    """Whether the program is small enough to be worth a try."""
    columns = count_columns(case.num_experts, case.slots)
    blocks = int(np.count_nonzero(case.homes_of_set)) * 4 ** case.sets.shape[1]
    return columns <= MOST_COLUMNS and blocks <= _MOST_BLOCKS and case.num_tokens > 0


@dataclass(kw_only=True)
class _Rows:
    """A program as it grows: costs and limits of variables, sparse rows with their limits."""

    cost: list[float] = field(default_factory=list)
    is_whole: list[int] = field(default_factory=list)
    highest: list[float] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def variable(self, cost: float = 0.0, highest: float = 1.0, *, is_whole: bool = False) -> int:
        self.cost.append(cost)
        self.highest.append(highest)
        self.is_whole.append(int(is_whole))
        return len(self.cost) - 1

    def add(self, terms: list[tuple[int, float]], low: float, high: float = np.inf) -> None:
        self.entries += [(len(self.low), variable, factor) for variable, factor in terms]
        self.low.append(low)
        self.high.append(high)


class _Program:
    """column[r]: (variable, experts) of each of rank r's columns."""

    def __init__(self, case: LayerCase) -> None:
        self.case = case
        self.rows = _Rows()
        experts = range(case.num_experts)
        self.columns = [
            [
                (self.rows.variable(is_whole=True), frozenset(chosen))
                for chosen in itertools.combinations(experts, int(slots))
            ]
            for slots in case.slots
        ]
        for columns in self.columns:
            self.rows.add([(variable, 1.0) for variable, _ in columns], 1.0, 1.0)
        for expert in experts:
            self.rows.add([(variable, 1.0) for variable in self._with(frozenset([expert]))], 1.0)
        self._together: dict[tuple[frozenset[int], int], int] = {}
        # What each rank serves in blocks, and of each expert and home the pairs that are served one by one.
        self._blocks: list[list[tuple[int, float]]] = [[] for _ in self.columns]
        self._single: dict[tuple[int, int], list[tuple[int, float]]] = {}
        self._price_covers()
        self._share_loads()

    def _with(self, block: frozenset[int]) -> list[int]:
        """The columns of any rank that hold the whole block."""
        return [variable for columns in self.columns for variable, held in columns if block <= held]

    def _price_covers(self) -> None:
        for row, home in zip(*np.nonzero(self.case.homes_of_set), strict=True):
            tokens, experts = float(self.case.homes_of_set[row, home]), frozenset(self.case.sets[row].tolist())
            leaving: dict[frozenset[int], list[int]] = {}
            for variable, held in self.columns[home]:
                leaving.setdefault(experts - held, []).append(variable)
            for unserved, variables in leaving.items():
                if len(unserved) == 1:
                    (expert,) = unserved
                    for variable in variables:
                        self.rows.cost[variable] += tokens
                    self._serve_alone(expert, int(home), variables, tokens)
                elif unserved:
                    self._cover(unserved, int(home), variables, tokens)

    def _serve_alone(self, expert: int, home: int, variables: list[int], tokens: float) -> None:
        self._single.setdefault((expert, home), []).extend((variable, -tokens) for variable in variables)

    def _cover(self, unserved: frozenset[int], home: int, leaving: list[int], tokens: float) -> None:
        """Blocks that serve what the columns `leaving` of rank `home` leave unserved."""
        serving: dict[int, list[tuple[int, float]]] = {expert: [] for expert in unserved}
        for size in range(1, len(unserved) + 1):
            for block in itertools.combinations(sorted(unserved), size):
                if size == 1:
                    used = [self.rows.variable(tokens)]
                    self._serve_alone(block[0], home, used, tokens)
                else:
                    used = [self._serve_block(frozenset(block), rank, tokens) for rank in self._others(home)]
                for expert in block:
                    serving[expert] += [(variable, 1.0) for variable in used]
        for terms in serving.values():
            self.rows.add(terms + [(variable, -1.0) for variable in leaving], 0.0)

    def _others(self, home: int) -> list[int]:
        return [rank for rank in range(self.case.ep_size) if rank != home]

    def _serve_block(self, block: frozenset[int], rank: int, tokens: float) -> int:
        """A variable: the share of some tokens that `rank` serves the whole block for."""
        if (block, rank) not in self._together:
            together = self.rows.variable()
            holders = [(variable, 1.0) for variable, held in self.columns[rank] if block <= held]
            self.rows.add([*holders, (together, -1.0)], 0.0)
            self._together[block, rank] = together
        used = self.rows.variable(tokens)
        self.rows.add([(self._together[block, rank], 1.0), (used, -1.0)], 0.0)
        self._blocks[rank].append((used, tokens * len(block)))
        return used

    def _share_loads(self) -> None:
        pairs = np.zeros((self.case.num_experts, self.case.ep_size))
        for experts in self.case.sets.T:
            np.add.at(pairs, experts, self.case.homes_of_set)
        loads = self._blocks
        for expert, home in zip(*np.nonzero(pairs), strict=True):
            share, served = float(pairs[expert, home]), self._single.get((int(expert), int(home)), [])
            for rank, columns in enumerate(self.columns):
                held = [(variable, share) for variable, column in columns if expert in column]
                if rank == home:
                    loads[rank] += held
                    continue
                part = self.rows.variable(highest=share)
                self.rows.add([*held, (part, -1.0)], 0.0)
                served.append((part, 1.0))
                loads[rank].append((part, 1.0))
            self.rows.add(served, 0.0, 0.0)
        for load, ceiling in zip(loads, self.case.ceiling, strict=True):
            self.rows.add(load, -np.inf, float(ceiling))

    def solve(self, options: SolveOptions, work: int) -> CopiesChoice:
        """The best choice that costs less than the plan, if the plan keeps the cap; within about `work` operations."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        rows, case = self.rows, self.case
        if case.is_legal:
            rows.add(list(enumerate(rows.cost)), -np.inf, case.cost - 1.0)
        row, column, value = zip(*rows.entries, strict=True)
        matrix = coo_array((value, (row, column)), shape=(len(rows.low), len(rows.cost))).tocsr()
        nodes = max(_FEWEST_NODES, work // (_WORK_PER_ENTRY * len(rows.entries)))
        limits = {"node_limit": int(nodes), "mip_rel_gap": 0.0}
        if options.seconds_left is not None:
            limits["time_limit"] = options.seconds_left
        found = milp(
            rows.cost,
            integrality=rows.is_whole,
            bounds=Bounds(0.0, rows.highest),
            constraints=LinearConstraint(matrix, rows.low, rows.high),
            options=limits,
        )
        if found.status == _STATUS_INFEASIBLE:
            return CopiesChoice(bound=case.cost if case.is_legal else np.inf, holds=None)
        proven = found.mip_dual_bound
        bound = 0.0 if proven is None else max(0.0, math.ceil(proven - _TOLERANCE * max(abs(proven), 1.0)))
        holds = None if found.x is None else self._holds(found.x)
        return CopiesChoice(bound=bound if np.isfinite(bound) else 0.0, holds=holds)

    def _holds(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        holds = np.zeros((self.case.ep_size, self.case.num_experts), dtype=np.bool_)
        for rank, columns in enumerate(self.columns):
            _, column = max(columns, key=lambda one: float(values[one[0]]))
            holds[rank, list(column)] = True
        return holds


def best_copies(case: LayerCase, options: SolveOptions, work: int) -> CopiesChoice:
    """The best placement under the load cap, or as near as `work` comes; an infinite bound where there is none."""
    return _Program(case).solve(options, work)
