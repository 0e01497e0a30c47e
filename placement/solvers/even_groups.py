"""Even loads from expert counts for routers limited to expert groups: one copy each, whole groups kept together."""

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.solvers.even_placement import EvenLayer, Ranks, even_placement


def even_groups(
    counts: NDArray[np.int64], slots: NDArray[np.int32], speed: NDArray[np.float64], expert_groups: int
) -> EvenLayer:
    """One layer whose ranks hold whole groups, or whose groups span whole ranks, as `check_groups` asks.

    counts: int64 [E]; slots: int32 [R], all equal; speed: float64 [R].
    """
    size, held, ep_size = len(counts) // expert_groups, int(slots[0]), len(slots)
    experts = np.arange(len(counts), dtype=np.int32).reshape(expert_groups, size)
    if held >= size:
        groups = _place(counts.reshape(expert_groups, size).sum(axis=1), slots // size, speed)
        placed = experts[groups].ravel()
    else:
        ranks = np.arange(ep_size).reshape(expert_groups, -1)
        placed = np.concatenate(
            [own[_place(counts[own], slots[on], speed[on])] for own, on in zip(experts, ranks, strict=True)]
        )
    filled = counts[placed].reshape(ep_size, held).sum(axis=1) / speed
    mean = counts.sum() / speed.sum()
    quota = np.full(len(placed), ep_size, dtype=np.int64)
    return EvenLayer(expert_of_slot=placed, quota=quota, heaviest=float(filled.max() / mean) if mean else 1.0)


def _place(counts: NDArray[np.int64], slots: NDArray[np.int32], speed: NDArray[np.float64]) -> NDArray[np.int32]:
    """int32 [P]: what each slot holds, one copy of each."""
    anywhere = np.zeros(len(slots), dtype=np.int32), np.zeros(len(counts), dtype=np.int32)
    ranks = Ranks(slots=slots, speed=speed, region=anywhere[0], home=anywhere[1])
    return even_placement(counts, np.ones(len(counts), dtype=np.int64), ranks).expert_of_slot
