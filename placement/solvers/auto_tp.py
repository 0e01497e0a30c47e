"""`auto` under `tp`: every layer for itself, side by side in threads."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.assemble import assemble
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.solvers.token_rows import TokenRows
from specmoe.placement.solvers.token_table import TokenTable
from specmoe.placement.solvers.tp_layer import TpLayer, solve_tp_layer
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

_STARTS = 6


def auto_tp(profile: RoutingProfile, topology: Topology, options: SolveOptions, cap: float) -> PlacementPlan:
    """The best plan found; `cap`: the load cap that the search keeps, at most `options.max_imbalance`."""
    sample = profile.require_sample("solving for token tables")
    rows = None if sample.token_ids is None else TokenRows.of(sample, options.seed)
    machine = Machine.of(topology, options, profile.num_logical_experts, cap)
    vocab_size = vocabulary_size(profile)

    def solve_layer(layer: int) -> TpLayer:
        problem = LayerProblem.of(profile, layer, machine)
        return solve_tp_layer(problem, rows, vocab_size, starts=_STARTS, seed=options.seed + layer)

    solved: list[TpLayer] = []
    expected = 0.0
    with ThreadPoolExecutor(options.workers) as pool:
        for layer in pool.map(solve_layer, range(profile.num_layers)):
            solved.append(layer)
            expected = float(np.mean([one.expected for one in solved]))
            options.report("layers", len(solved), profile.num_layers, expected)
    choices = [layer.choice for layer in solved]
    tables = _stacked([layer.table for layer in solved if layer.table is not None])
    return assemble(profile, topology, options, choices, method="auto", expected=expected, **tables)


def _stacked(tables: list[TokenTable]) -> dict[str, Any]:
    """The plan's tensors of all layers' tables, none where there are none."""
    if not tables:
        return {}
    return {
        "token_to_rank": np.stack([table.rank for table in tables]),
        "token_confidence": np.stack([table.confidence for table in tables]),
    }


def vocabulary_size(profile: RoutingProfile) -> int:
    """V: the profile's, or just enough for the token ids of its sample."""
    if profile.vocab_size is not None:
        return profile.vocab_size
    if profile.sample is None or profile.sample.token_ids is None or profile.sample.num_tokens == 0:
        return 0
    return int(profile.sample.token_ids.max()) + 1
