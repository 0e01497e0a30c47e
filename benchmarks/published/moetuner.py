"""MoETuner (arXiv 2502.06643): groups of equal load by an integer programme, then the ranks that the groups go to.

The first programme minimises, per layer, the sum over groups of |load - mean|. As printed it lets groups have any
size; the equal sizes that it needs to be more than trivial are added. The second one minimises, summed over layers,
the largest traffic between two ranks, tokens moving from their experts of one layer to those of the next. On equal
links the two layers of a pair may be matched independently of all others, so it is solved exactly, without a solver.
"""

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from published.exflow import transitions
from published.groups import best_groups, group_sizes, plan_of_groups
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

WORK_PER_LAYER = 0.25


def moetuner(profile: RoutingProfile, topology: Topology, options: SolveOptions) -> PlacementPlan:
    """Both programmes; the first ends after a fixed amount of work a layer, whatever else the machine does."""
    sizes = group_sizes(profile, topology)
    layers = [even_groups(counts, sizes, WORK_PER_LAYER, options.seed) for counts in profile.expert_counts]
    moves = transitions(profile)
    for layer, pair in enumerate(moves):
        layers[layer + 1] = best_ranks(pair, layers[layer], layers[layer + 1], len(sizes))[layers[layer + 1]]
    return plan_of_groups(profile, topology, options, "moetuner", np.stack(layers))


def even_groups(counts: NDArray[np.int64], sizes: list[int], work: float, seed: int) -> NDArray[np.int64]:
    """int64 [E]: groups of these sizes with the least sum of |load - mean|, or the best found in so much `work`."""
    model, R, total = cp_model.CpModel(), len(sizes), int(counts.sum())
    placed = [[model.new_bool_var("") for _ in sizes] for _ in counts]
    for row in placed:
        model.add_exactly_one(row)
    deviations = []
    for rank, size in enumerate(sizes):
        model.add(sum(row[rank] for row in placed) == size)
        deviation = model.new_int_var(0, R * total, "")
        load = R * sum(int(count) * row[rank] for count, row in zip(counts, placed, strict=True))
        model.add(deviation >= load - total)
        model.add(deviation >= total - load)
        deviations.append(deviation)
    model.minimize(sum(deviations))
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = work
    solver.parameters.random_seed = seed
    solver.parameters.num_workers = 1
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return best_groups(np.zeros((len(counts), R)), sizes)
    return np.array([[solver.boolean_value(cell) for cell in row].index(True) for row in placed], dtype=np.int64)


def best_ranks(
    moves: NDArray[np.float64], before: NDArray[np.int64], after: NDArray[np.int64], ep_size: int
) -> NDArray[np.int64]:
    """int64 [R]: the rank of each group of the later layer that makes the largest traffic between ranks least.

    before: the ranks of the earlier layer's experts; after: the groups of the later layer's. All traffic above the
    best reachable value must stay on a rank: the largest entries are fixed one by one while they form a matching. The
    rest is matched to keep as much traffic as possible on its rank.
    """
    traffic = np.zeros((ep_size, ep_size), dtype=np.float64)
    np.add.at(traffic, (before[:, None], after[None, :]), moves)
    kept = np.zeros_like(traffic, dtype=np.bool_)
    for index in np.argsort(-traffic, axis=None, kind="stable"):
        rank, group = np.unravel_index(index, traffic.shape)
        if kept[rank].any() or kept[:, group].any():
            break
        kept[rank, group] = True
    return best_groups(np.where(kept, traffic + traffic.sum(), traffic).T, [1] * ep_size)
