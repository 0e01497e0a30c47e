"""Fixtures that several stages' tests share."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.plan import PlacementPlan, ReplicaChoice
from specmoe.placement.topology import Topology

# Triton reads this when it is first imported, which transformers does: without a GPU its interpreter runs the kernels.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell that runs the suite in the background has it ignore Ctrl-C, which processes started by tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `gpu` on a machine without one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


@pytest.fixture(scope="session")
def random_plan() -> Callable[..., PlacementPlan]:
    """`random_plan(rng, num_experts=..., ranks_per_node=..., top_k=...)`: a small legal plan."""
    return _random_plan


def _random_plan(
    rng: np.random.Generator,
    *,
    num_experts: int,
    ranks_per_node: tuple[int, ...],
    top_k: int,
    extra_slots: tuple[int, ...] | int = 0,
    replica_choice: ReplicaChoice = "static",
    layer_ids: tuple[int, ...] = (0,),
    uneven: bool = False,
) -> PlacementPlan:
    """Experts on random ranks (`uneven`: the first rank holds as many as it can), replicas on random others."""
    R = sum(ranks_per_node)
    base = [num_experts // R + (rank < num_experts % R) for rank in range(R)]
    if uneven:
        base = [num_experts - (R - 1), *([1] * (R - 1))]
    extra = [extra_slots] * R if isinstance(extra_slots, int) else list(extra_slots)
    slots = [min(b + e, num_experts) for b, e in zip(base, extra, strict=True)]
    rank_of_physical = np.repeat(np.arange(R), slots).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(slots)])
    rows = np.stack([_fill(rng, num_experts, base, slots) for _ in layer_ids])
    dispatch = np.stack([_dispatch(rng, row, rank_of_physical, offsets, num_experts) for row in rows])
    return PlacementPlan(
        topology=Topology(ranks_per_node=ranks_per_node),
        num_logical_experts=num_experts,
        top_k=top_k,
        attention="dp",
        replica_choice=replica_choice,
        layer_ids=np.array(layer_ids, dtype=np.int32),
        physical_to_logical=rows.astype(np.int32),
        rank_of_physical=rank_of_physical,
        dispatch_slot=dispatch.astype(np.int32),
        method="random",
    )


def _fill(rng: np.random.Generator, E: int, base: list[int], slots: list[int]) -> np.ndarray:
    order = rng.permutation(E)
    filled, start = [], 0
    for own, total in zip(base, slots, strict=True):
        held = order[start : start + own]
        others = rng.permutation(np.setdiff1d(np.arange(E), held))[: total - own]
        filled.append(rng.permutation(np.concatenate([held, others])))
        start += own
    return np.concatenate(filled)


def _dispatch(
    rng: np.random.Generator, row: np.ndarray, rank_of: np.ndarray, offsets: np.ndarray, E: int
) -> np.ndarray:
    R = len(offsets) - 1
    table = np.empty((R, E), dtype=np.int32)
    for expert in range(E):
        holders = np.flatnonzero(row == expert)
        for rank in range(R):
            own = [slot for slot in holders if rank_of[slot] == rank]
            table[rank, expert] = own[0] if own else rng.choice(holders)
    return table
