"""The best bound for one layer that a given amount of work proves, and the better placement that may come with it.

Two questions are kept apart. *With the plan's homes*: no placement costs less for the tokens where the plan's tables
seat them. *With any homes*: no placement costs less even if every token started on the best rank for it; then all ranks
pay alike, and a token saves at most the one copy to its home.

With slower links between nodes a token pays for each remote rank and, on top, for each other node. Both counts are
problems of columns, ranks' and nodes', and the sum of their bounds bounds the sum.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.best_pairs import best_pairs
from specmoe.placement.bounds.companions import companions_bound
from specmoe.placement.bounds.copies_program import best_copies, can_program
from specmoe.placement.bounds.credit_ascent import can_credit, credit_bound
from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.bounds.mask_costs import can_count
from specmoe.placement.bounds.pair_layer import can_pair
from specmoe.placement.bounds.partition import best_choice
from specmoe.placement.bounds.price_ascent import Ascent, ascend, cost_of
from specmoe.placement.bounds.rank_problem import RankProblem, rank_problem
from specmoe.placement.bounds.served_choice import ServedChoice
from specmoe.placement.bounds.served_program import best_served, can_serve
from specmoe.placement.bounds.witness_bound import witness_bound, witness_bound_anywhere
from specmoe.placement.options import SolveOptions

# The part of a layer's work that goes to the question of any homes, and to nodes where they count.
_ANY_HOMES = 0.25
_NODES = 0.25
# A gap above this share of the bound says little about the plan.
_WEAK = 0.25
# A search by credits that was cut short is mostly below this share of the plan's cost.
_ENOUGH = 0.6
# Of 64 experts, eight a token: 6e5 columns, on 16 ranks, leave 7 or 42 % by columns and 10 or 9 % by witnesses, on two
# models; halves of the work for both leave what witnesses do.
_FEW_COLUMNS = 10**5
# More than products of copies and surcharges can be off in float64.
_ROUNDED_DOWN = 1.0 - 1e-12


@dataclass(frozen=True, kw_only=True)
class LayerBound:
    """with_homes and any_homes: copies over all tokens (weighted by link) that no placement goes below.

    is_weak: whether the gap to the one with homes is wide; cost: of the placement below, or of the plan's.
    rank_of_expert: int32 [E], a placement of single
    copies that costs less than the plan's, where one was found; holds: bool [R, E], the same with replicas, which a
    replica choice has yet to be tried on; served: the best found with its dispatch, where one was sought.
    """

    with_homes: float
    any_homes: float
    is_weak: bool
    cost: float
    rank_of_expert: NDArray[np.int32] | None = None
    holds: NDArray[np.bool_] | None = None
    served: ServedChoice | None = None


def bound_layer(case: LayerCase, options: SolveOptions, work: int) -> LayerBound:
    """Bounds within about `work` operations (a nanosecond each), never above what the plan costs."""
    cheap = companions_bound(case)
    if case.has_replicas:
        best = min(max(cheap, whole(with_replicas(case, options, work))), case.cost)
        return LayerBound(with_homes=best, any_homes=0.0, is_weak=is_weak(best, case.cost), cost=case.cost)
    any_homes = copies_anywhere(case, options, int(_ANY_HOMES * work))
    with_homes = copies_seated(case, options, int((1 - _ANY_HOMES) * work))
    if case.surcharge > 0:
        with_homes += case.surcharge * copies_seated(case_of_nodes(case), options, int(_NODES * work)) * _ROUNDED_DOWN
    best = min(max(with_homes, any_homes, cheap), case.cost)
    return LayerBound(with_homes=best, any_homes=min(any_homes, best), is_weak=is_weak(best, case.cost), cost=case.cost)


def with_replicas(case: LayerCase, options: SolveOptions, work: int) -> float:
    """By credits where experts are few enough for an exact search; by witnesses where they are not, or where the work
    does not bring that search to an end.
    """
    bound = credit_bound(case, work, lambda: options.is_over) if can_credit(case) else 0.0
    if bound > _ENOUGH * case.cost:
        return bound
    return max(bound, witness_bound(case, work, lambda: options.is_over))


def copies_seated(case: LayerCase, options: SolveOptions, work: int) -> float:
    """Single copies of experts, tokens at the plan's homes; 0 where the work is too little."""
    if not has_few_columns(case):
        return whole(witness_bound(case, work, lambda: options.is_over))
    return whole(ascend_ranks(case, work).bound) if work >= ascent_work(case) else 0.0


def copies_anywhere(case: LayerCase, options: SolveOptions, work: int) -> float:
    """The same, with every token on the best rank for it."""
    if not has_few_columns(case):
        return whole(witness_bound_anywhere(case, work, lambda: options.is_over))
    return whole(ascend_any_homes(case, work).bound - case.num_tokens) if work >= ascent_work(case) else 0.0


def has_few_columns(case: LayerCase) -> bool:
    """Whether a search of what a rank can hold mostly comes to an end: experts are counted fast, or columns are few."""
    columns = max(math.comb(case.num_experts, slots) for slots in case.slots.tolist())
    return columns <= _FEW_COLUMNS or can_count(case.num_experts, case.sets.shape[1])


def is_weak(bound: float, cost: float) -> bool:
    """Whether the gap leaves open whether the plan is any good."""
    return cost > bound * (1 + _WEAK)


def whole(bound: float) -> float:
    """The bound on a number of copies, which is whole and not below 0."""
    return float(max(0.0, np.ceil(bound)))


def ascent_work(case: LayerCase) -> int:
    """Roughly the operations of one turn of an ascent, without which it proves nothing."""
    pairs_of_group = case.sets.shape[1] ** 2
    return int(case.ep_size * (4 * len(case.sets) * pairs_of_group + 40 * case.num_experts**2))


def ranks_of(case: LayerCase) -> RankProblem:
    """What each rank pays for a column: the tokens that start elsewhere."""
    away = case.tokens_of_set[:, None] - case.homes_of_set
    return rank_problem(case.sets, away.astype(np.float64), case.load, case.slots, case.ceiling)


def ascend_ranks(case: LayerCase, work: int) -> Ascent:
    """Remote copies with the plan's homes."""
    return ascend(ranks_of(case), case.rank_of_expert, work)


def ascend_any_homes(case: LayerCase, work: int) -> Ascent:
    """(Token, rank) pairs, the home's included."""
    tokens = np.repeat(case.tokens_of_set[:, None], case.ep_size, axis=1)
    problem = rank_problem(case.sets, tokens.astype(np.float64), case.load, case.slots, case.ceiling)
    return ascend(problem, case.rank_of_expert, work)


def case_of_nodes(case: LayerCase) -> LayerCase:
    """Nodes in place of ranks: what they hold together, and the other nodes that tokens reach."""
    of_rank = case.node[:, None] == np.arange(case.node.max() + 1)
    return replace(
        case,
        homes_of_set=case.homes_of_set @ of_rank,
        slots=(case.slots @ of_rank).astype(np.int32),
        ceiling=case.ceiling @ of_rank,
        node=np.arange(of_rank.shape[1], dtype=np.int32),
        holds=of_rank.T @ case.holds,
    )


def can_settle(case: LayerCase, options: SolveOptions) -> bool:
    """Whether the best placement is what `settle_layer` looks for: free of groups, links alike, few replicas."""
    if case.surcharge > 0 or options.group_limited:
        return False
    return not case.has_replicas or can_pair(case) or can_program(case)


def settle_layer(case: LayerCase, options: SolveOptions, work: int) -> LayerBound:
    """The best placement for the plan's homes, or as near as the work comes; an infinite bound where there is none."""
    if not can_settle(case, options):
        return bound_layer(case, options, work)
    if case.has_replicas:
        return _settle_pairs(case, options, work) if can_pair(case) else _settle_copies(case, options, work)
    problem = ranks_of(case)
    ascent = ascend(problem, case.rank_of_expert, work)
    # No placement costs more than one copy per pair, so a plan that breaks the cap is no limit.
    known = case.cost if case.is_legal else case.load.sum() + 1.0
    choice = best_choice(problem, ascent, known, options, work)
    if choice.rank_of_expert is None and choice.is_best and not case.is_legal:
        return LayerBound(with_homes=np.inf, any_homes=0.0, is_weak=False, cost=case.cost)
    cost = case.cost if choice.rank_of_expert is None else cost_of(problem, choice.rank_of_expert)
    any_homes = copies_anywhere(case, options, work)
    proven = whole(choice.bound)
    if not choice.is_best and not has_few_columns(case):
        proven = max(proven, copies_seated(case, options, work))
    bound = min(proven, cost)
    return LayerBound(
        with_homes=bound,
        any_homes=min(any_homes, bound),
        is_weak=is_weak(bound, cost),
        cost=cost,
        rank_of_expert=choice.rank_of_expert,
    )


def _settle_pairs(case: LayerCase, options: SolveOptions, work: int) -> LayerBound:
    """The same with replicas, for up to two experts a token; the programs follow under `static` alone."""
    served = best_pairs(case, options, work)
    bound = served.bound
    if case.replica_choice == "static" and bound < served.cost and not options.is_over:
        known = case if served.holds is None else replace(case, holds=served.holds, cost=served.cost, is_legal=True)
        program = _settle_copies(known, options, work)
        bound = max(bound, program.with_homes)
        if program.served is not None and program.served.holds is not None:
            served = program.served
    if np.isinf(bound):
        return LayerBound(with_homes=np.inf, any_homes=0.0, is_weak=False, cost=case.cost)
    cost = served.cost if np.isfinite(served.cost) else case.cost
    return LayerBound(with_homes=bound, any_homes=0.0, is_weak=is_weak(bound, cost), cost=cost, served=served)


def _settle_copies(case: LayerCase, options: SolveOptions, work: int) -> LayerBound:
    """The same by integer programs."""
    choice = best_copies(case, options, work)
    if np.isinf(choice.bound):
        return LayerBound(with_homes=np.inf, any_homes=0.0, is_weak=False, cost=case.cost)
    bound = min(max(choice.bound, companions_bound(case)), case.cost)
    if choice.holds is None and bound < case.cost:
        bound = min(max(bound, whole(with_replicas(case, options, work))), case.cost)
    cost: float = case.cost
    served: ServedChoice | None = None
    if can_serve(case):
        served = best_served(case, replace(choice, bound=bound), options, work)
        bound, cost = served.bound, served.cost if np.isfinite(served.cost) else case.cost
    return LayerBound(
        with_homes=bound,
        any_homes=0.0,
        is_weak=is_weak(bound, cost),
        cost=cost,
        holds=choice.holds,
        served=served,
    )
