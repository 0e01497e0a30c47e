"""`auto` under `tp`: every layer for itself, side by side in threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import tp_homes
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import assemble
from specmoe.placement.solvers.cost_spread import cost_spread
from specmoe.placement.solvers.effort import affordable_starts, searched_tokens
from specmoe.placement.solvers.finish_layer import LayerChoice, finish_layer
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.solvers.load_drift import Redraws
from specmoe.placement.solvers.margins import Margins, ceiling_of
from specmoe.placement.solvers.token_rows import TokenRows
from specmoe.placement.solvers.token_table import TokenTable
from specmoe.placement.solvers.tp_layer import TpLayer, solve_tp_layer
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

_STARTS = 12
# Annealing begins hot, so it needs no more than a fair start.
_STARTS_WITH_REPLICAS = 3
# The part of a time limit for the layers' search; the rest is for seating tokens and for dispatch.
_SEARCH_TIME = 0.7


def auto_tp(profile: RoutingProfile, topology: Topology, options: SolveOptions, margins: Margins) -> PlacementPlan:
    """The best plan found; `margins`: the parts of the allowed imbalance that its layers may try on the profile."""
    sample = profile.require_sample("solving for token tables")
    rows = None if sample.token_ids is None else TokenRows.of(sample, options.seed, options.nearest)
    machine = Machine.of(topology, options, profile.num_logical_experts, ceiling_of(margins[0], options.max_imbalance))
    redraws = Redraws.of(sample, options.seed)
    vocab_size = vocabulary_size(profile)
    slots = int(machine.slots.sum())
    if slots > profile.num_logical_experts:
        starts = max(1, affordable_starts(_STARTS_WITH_REPLICAS, slots))
    else:
        starts = max(1, affordable_starts(_STARTS, slots))
    tokens = searched_tokens(sample.num_tokens, profile.top_k, options.seed)

    def solve_layer(layer: int) -> TpLayer:
        problem = LayerProblem.of(profile, layer, machine)
        searched = LayerProblem.of(profile, layer, machine, tokens) if len(tokens) < sample.num_tokens else problem
        share = min(1.0, _SEARCH_TIME * options.workers / (profile.num_layers - layer))
        timed, seed = options.ending_after(share), options.seed + layer
        redrawn = redraws.pairs(sample.expert_ids[:, layer], profile.num_logical_experts)
        return solve_tp_layer(
            problem,
            searched,
            tokens,
            rows,
            redrawn,
            vocab_size,
            timed,
            margins=margins,
            starts=starts,
            seed=seed,
        )

    solved: list[TpLayer] = []
    expected = 0.0
    with ThreadPoolExecutor(options.workers) as pool:
        for layer in pool.map(solve_layer, range(profile.num_layers)):
            solved.append(layer)
            expected = float(np.mean([one.expected for one in solved]))
            options.report("layers", len(solved), profile.num_layers, expected)
    table = _stacked([layer.table for layer in solved if layer.table is not None])
    homes = tp_homes(sample.token_ids, *table, sample.num_tokens, profile.num_layers, topology.ep_size)
    choice = options.replica_choice or "cover"

    def finish(layer: int) -> LayerChoice:
        problem = LayerProblem.of(profile, layer, machine)
        return finish_layer(
            problem, solved[layer].copies, homes[layer], choice, options.seed + layer, may_search=not options.is_over
        )

    with ThreadPoolExecutor(options.workers) as pool:
        choices: list[LayerChoice] = []
        for choice_of_layer in pool.map(finish, range(profile.num_layers)):
            choices.append(choice_of_layer)
            options.report("dispatch", len(choices), profile.num_layers, expected)
    tables = {} if table[0] is None else {"token_to_rank": table[0], "token_confidence": table[1]}
    spread = _spread(solved, redraws)
    return assemble(profile, topology, options, choices, method="auto", expected=expected, spread=spread, **tables)


def _spread(layers: list[TpLayer], redraws: Redraws) -> float | None:
    """How far from the expected cost that of other requests may lie, as a part of it."""
    if redraws.num_blocks < 2:
        return None
    return cost_spread(np.mean([redraws.means(layer.cost_of_token) for layer in layers], axis=0))


def _stacked(tables: list[TokenTable]) -> tuple[NDArray[np.int16] | None, NDArray[np.float16] | None]:
    """int16 [L, V] and float16 [L, V] of all layers' tables, None where there are none."""
    if not tables:
        return None, None
    return np.stack([table.rank for table in tables]), np.stack([table.confidence for table in tables])


def vocabulary_size(profile: RoutingProfile) -> int:
    """V: the profile's, or just enough for the token ids of its sample."""
    if profile.vocab_size is not None:
        return profile.vocab_size
    if profile.sample is None or profile.sample.token_ids is None or profile.sample.num_tokens == 0:
        return 0
    return int(profile.sample.token_ids.max()) + 1
