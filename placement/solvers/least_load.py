"""What the heaviest rank of a layer must carry at least, whatever the placement, and what forces that."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class LeastLoad:
    """heaviest: load over speed, relative to the mean, that no placement can go below; reason: why, in a few words."""

    heaviest: float
    reason: str


def least_load(counts: NDArray[np.int64], slots: NDArray[np.int32], speed: NDArray[np.float64]) -> LeastLoad:
    """The strongest of a few simple bounds for one layer; counts: int64 [E]; slots: int32 [R]; speed: float64 [R]."""
    spare = int(slots.sum()) - len(counts)
    bounds = [LeastLoad(heaviest=1.0, reason="loads have a mean")]
    if counts.sum() > 0:
        mean = float(counts.sum() / speed.sum())
        bounds.append(_hottest_shared(counts / mean, spare, speed))
        if spare == 0:
            bounds += [_hottest_in_company(counts / mean, slots, speed), _fullest_rank(counts / mean, slots, speed)]
    return max(bounds, key=lambda bound: bound.heaviest)


def _hottest_shared(load: NDArray[np.float64], spare: int, speed: NDArray[np.float64]) -> LeastLoad:
    """The hottest expert on as many of the fastest ranks as there can be copies of it."""
    expert, copies = int(load.argmax()), min(len(speed), spare + 1)
    least = float(load[expert] / np.sort(speed)[-copies:].sum())
    where = "alone" if copies == 1 else f"on {copies} ranks"
    return LeastLoad(heaviest=least, reason=f"expert {expert} {where} has that")


def _hottest_in_company(load: NDArray[np.float64], slots: NDArray[np.int32], speed: NDArray[np.float64]) -> LeastLoad:
    """The hottest expert with the coldest ones, without which its rank's slots are not full."""
    expert = int(load.argmax())
    coldest = np.concatenate([[0.0], np.cumsum(np.sort(np.delete(load, expert)))])
    rank = int(((load[expert] + coldest[slots - 1]) / speed).argmin())
    least = float((load[expert] + coldest[slots[rank] - 1]) / speed[rank])
    return LeastLoad(heaviest=least, reason=f"expert {expert} with the {slots[rank] - 1} coldest experts has that")


def _fullest_rank(load: NDArray[np.float64], slots: NDArray[np.int32], speed: NDArray[np.float64]) -> LeastLoad:
    """The rank whose slots and speed fit least, filled with the coldest experts."""
    least = np.cumsum(np.sort(load))[slots - 1] / speed
    rank = int(least.argmax())
    reason = (
        f"rank {rank} of relative speed {speed[rank]:g} must hold {slots[rank]} experts and has that with the coldest"
    )
    return LeastLoad(heaviest=float(least[rank]), reason=reason)
