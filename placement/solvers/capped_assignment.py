"""Each expert on the rank that wants it most, with equal slots and under the load cap: assignment, then exchanges.

The assignment of experts to slots is exact. Where it overloads a rank, experts of that rank and of others change
places, each time the pair that gives up least for the overload that it takes away. Where that ends above the cap, the
most even placement is the start in its place. Then pairs change places for a gain as long as that keeps the cap.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from specmoe.placement.solvers.even_placement import Ranks, even_placement


def capped_assignment(
    wanted: NDArray[np.float64],
    load: NDArray[np.float64],
    slots: NDArray[np.int32],
    speed: NDArray[np.float64],
    ceiling: float,
) -> NDArray[np.int32]:
    """int32 [E]: the rank of each expert. wanted: float64 [E, R], what is gained by expert e on rank r; load: float64
    [E]; slots: int32 [R], at least E in all; speed: float64 [R]; ceiling: the load over speed that a rank may have.
    """
    rank_of_slot = np.repeat(np.arange(len(slots), dtype=np.int32), slots)
    free = len(rank_of_slot) - len(wanted)
    # Places beyond the experts are empty ones: to change with them is to move.
    wanted, load = np.pad(wanted, ((0, free), (0, 0))), np.pad(load, (0, free))
    placed = rank_of_slot[linear_sum_assignment(wanted[:, rank_of_slot], maximize=True)[1]]
    while (pair := _easing_exchange(wanted, load, placed, speed, ceiling)) is not None:
        placed[list(pair)] = placed[list(pair[::-1])]
    if (np.bincount(placed, weights=load) / speed).max() > ceiling * (1 + 1e-9):
        placed = _most_even(load, slots, speed)
    while (pair := _gaining_exchange(wanted, load, placed, speed, ceiling)) is not None:
        placed[list(pair)] = placed[list(pair[::-1])]
    kept: NDArray[np.int32] = placed[: len(placed) - free]
    return kept


def _most_even(load: NDArray[np.float64], slots: NDArray[np.int32], speed: NDArray[np.float64]) -> NDArray[np.int32]:
    """int32 [P]: the ranks of as many experts as there are slots, by load alone."""
    anywhere = np.zeros(len(slots), dtype=np.int32), np.zeros(len(load), dtype=np.int32)
    ranks = Ranks(slots=slots, speed=speed, region=anywhere[0], home=anywhere[1])
    layer = even_placement(load.astype(np.int64), np.ones(len(load), dtype=np.int64), ranks)
    placed = np.empty(len(load), dtype=np.int32)
    placed[layer.expert_of_slot] = ranks.rank_of_slot
    return placed


def _gaining_exchange(
    wanted: NDArray[np.float64],
    load: NDArray[np.float64],
    placed: NDArray[np.int32],
    speed: NDArray[np.float64],
    ceiling: float,
) -> tuple[int, int] | None:
    """The two experts that gain most by changing places under the cap; None where none gain."""
    filled = np.bincount(placed, weights=load, minlength=len(speed)) / speed
    elsewhere = wanted[:, placed]
    own = wanted[np.arange(len(placed)), placed]
    gain = elsewhere + elsewhere.T - own[:, None] - own[None, :]
    after = filled[placed][:, None] + (load[None, :] - load[:, None]) / speed[placed][:, None]
    heavier = np.where(placed[:, None] == placed[None, :], 0.0, np.maximum(after, after.T))
    allowed = heavier <= np.maximum(ceiling, np.maximum(filled[placed][:, None], filled[placed][None, :]))
    first, second = np.unravel_index(int(np.where(allowed, gain, -np.inf).argmax()), gain.shape)
    return (int(first), int(second)) if gain[first, second] > 1e-9 * np.abs(own).max() else None


def _easing_exchange(
    wanted: NDArray[np.float64],
    load: NDArray[np.float64],
    placed: NDArray[np.int32],
    speed: NDArray[np.float64],
    ceiling: float,
) -> tuple[int, int] | None:
    """The expert of the heaviest rank, and that of another, to change places; None where nothing is to be gained."""
    filled = np.bincount(placed, weights=load, minlength=len(speed)) / speed
    heavy = int(filled.argmax())
    if filled[heavy] <= ceiling * (1 + 1e-9):
        return None
    mine, others = np.flatnonzero(placed == heavy), np.flatnonzero(placed != heavy)
    where = placed[others]
    moved = load[mine][:, None] - load[others][None, :]
    before = filled[heavy] + np.maximum(filled[where], ceiling)
    after = np.maximum(filled[heavy] - moved / speed[heavy], ceiling)
    after = after + np.maximum(filled[where] + moved / speed[where], ceiling)
    eased = before - after
    lost = wanted[mine, heavy][:, None] + wanted[others, where][None, :]
    lost = lost - wanted[mine][:, where] - wanted[others, heavy][None, :]
    helps = eased > 1e-9 * ceiling
    if not helps.any():
        return None
    # A pair that gives up nothing is taken by how much it eases, before all others.
    price = np.where(lost > 0, lost / np.maximum(eased, 1e-300), -eased)
    row, column = np.unravel_index(int(np.where(helps, price, np.inf).argmin()), price.shape)
    return int(mine[row]), int(others[column])
