"""Routers limited to expert groups: which placements a renumbered checkpoint can express, and how to stay within them.

A group's experts must fill one group's place in slot order. Where a rank holds whole groups, groups are placed as
units; where a group spans several ranks, its experts change places among these ranks.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from specmoe.errors import UsageError

_METHODS = ("auto", "linear")


def check_groups(num_logical_experts: int, slots: NDArray[np.int32], expert_groups: int | None, method: str) -> None:
    """Raise `UsageError` unless `expert_groups` groups can be kept on ranks of `slots` [R] slots by `method`."""
    E = num_logical_experts
    if expert_groups is None:
        raise UsageError("group_limited needs expert_groups, the number of groups that the router has (n_group)")
    if method not in _METHODS:
        raise UsageError(f"method {method!r} does not keep expert groups; one of {', '.join(_METHODS)} does")
    if E % expert_groups:
        raise UsageError(f"{E} experts do not divide into {expert_groups} groups: {E % expert_groups} are left over")
    if slots.sum() != E:
        raise UsageError(
            f"group_limited allows no replicas: {slots.sum()} slots for {E} experts are {slots.sum() - E} too many"
        )
    size, held = E // expert_groups, int(slots[0])
    if len(set(slots.tolist())) > 1 or (size % held and held % size):
        raise UsageError(
            f"groups of {size} experts do not fit ranks of {sorted(set(slots.tolist()))} slots: "
            "one must be a multiple of the other, the same on all ranks"
        )


def random_by_groups(
    num_logical_experts: int, slots: NDArray[np.int32], expert_groups: int, rng: np.random.Generator
) -> NDArray[np.int32]:
    """int32 [E]: a random placement that keeps groups; see `check_groups` for what must divide."""
    size = num_logical_experts // expert_groups
    ranks = np.repeat(np.arange(len(slots), dtype=np.int32), slots).reshape(expert_groups, size)
    ranks = rng.permutation(ranks, axis=0)
    placed: NDArray[np.int32] = rng.permuted(ranks, axis=1).ravel()
    return placed


def swap_groups(
    rank_of_expert: NDArray[np.int32], expert_groups: int, cost_of: Callable[[NDArray[np.int32]], float]
) -> NDArray[np.int32]:
    """int32 [E]: the placement bettered by exchanging whole groups, the best exchange first, until none helps."""
    best = rank_of_expert.reshape(expert_groups, -1).copy()
    best_cost = cost_of(best.ravel())
    while True:
        tried = []
        for first in range(expert_groups):
            for second in range(first):
                changed = best.copy()
                changed[[first, second]] = changed[[second, first]]
                tried.append((cost_of(changed.ravel()), first, second))
        cost, first, second = min(tried, default=(best_cost, 0, 0))
        if cost >= best_cost - 1e-9:
            return best.ravel()
        best[[first, second]] = best[[second, first]]
        best_cost = cost
