"""Copies packed onto ranks so that the heaviest rank of a layer is as light as can be found, from expert counts alone.

A home rank is taken to use every expert equally often, counts[e] / R times, and uses one copy of it. So a copy has a
quota, a whole number of home ranks, and serves quota counts[e] / R pairs. Copies are dealt out by falling load, then
the heaviest rank exchanges slots with others while that makes it lighter.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.baselines.build import RankExperts
from specmoe.placement.baselines.eplb import place_by_exchange

# A layer is even when its heaviest rank is this little above the mean, below a printed digit.
EVEN = 1e-4


@dataclass(frozen=True, kw_only=True)
class EvenLayer:
    """expert_of_slot: int32 [P]; quota: int64 [P], how many of the R home ranks use the slot, at least one.

    heaviest: the heaviest rank's load over its speed, relative to the mean; by quotas or by equal shares, if higher.
    """

    expert_of_slot: NDArray[np.int32]
    quota: NDArray[np.int64]
    heaviest: float


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The ranks that a layer is packed onto. slots: int32 [R]; speed: float64 [R]; region: int32 [R], an expert leaves
    its own region only where no placement within it was found to be as even; home: int32 [E], each expert's region.
    """

    slots: NDArray[np.int32]
    speed: NDArray[np.float64]
    region: NDArray[np.int32]
    home: NDArray[np.int32]

    @property
    def rank_of_slot(self) -> NDArray[np.int32]:
        """int32 [P]."""
        return np.repeat(np.arange(len(self.slots), dtype=np.int32), self.slots)


def even_placement(counts: NDArray[np.int64], copies: NDArray[np.int64], ranks: Ranks) -> EvenLayer:
    """One layer with `copies` [E] copies of each expert, as many as there are slots; counts: int64 [E]."""
    ep_size, rank_of_slot = len(ranks.slots), ranks.rank_of_slot
    held = _pack(counts / copies, copies, ranks)
    placed = np.array([expert for experts in held for expert in experts], dtype=np.int32)
    quota = equal_quotas(placed, ep_size)
    load = counts[placed] * quota / ep_size
    mean = counts.sum() / ranks.speed.sum()
    _exchange_slots(placed, quota, load, rank_of_slot, ranks.speed, ranks.region, mean * (1.0 + EVEN))
    shares = np.bincount(rank_of_slot, weights=(counts / copies)[placed])
    filled = np.maximum(np.bincount(rank_of_slot, weights=load), shares) / ranks.speed
    return EvenLayer(expert_of_slot=placed, quota=quota, heaviest=float(filled.max() / mean) if mean else 1.0)


def equal_quotas(expert_of_slot: NDArray[np.int32], ep_size: int) -> NDArray[np.int64]:
    """int64 [P]: the home ranks shared evenly among an expert's copies, one more for the first ones."""
    copies = np.bincount(expert_of_slot)
    order = np.argsort(expert_of_slot, kind="stable")
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order)) - np.repeat(np.cumsum(copies) - copies, copies)
    own = copies[expert_of_slot]
    quota: NDArray[np.int64] = ep_size // own + (number < ep_size % own)
    return quota


def _pack(load_per_copy: NDArray[np.float64], copies: NDArray[np.int64], ranks: Ranks) -> RankExperts:
    """The experts of each rank: copies by falling load, each to the least-loaded rank with room and without a twin.

    A rank of the expert's region comes first where the copy fits under the mean load, then any where it does.
    """
    held: RankExperts = [[] for _ in ranks.slots]
    load, room = np.zeros(len(held)), ranks.slots.copy()
    has_twin = np.zeros((len(copies), len(held)), dtype=np.bool_)
    mean = float((load_per_copy * copies).sum() / ranks.speed.sum())
    experts = np.repeat(np.arange(len(copies)), copies)
    for expert in experts[np.argsort(-load_per_copy[experts], kind="stable")].tolist():
        free = (room > 0) & ~has_twin[expert]
        if not free.any():
            place_by_exchange(expert, held, np.flatnonzero(room > 0).tolist(), load_per_copy)
            room = ranks.slots - np.array([len(rank) for rank in held], dtype=np.int32)
            load = np.array([load_per_copy[rank].sum() for rank in held]) / ranks.speed
            has_twin = np.array([[index in rank for rank in held] for index in range(len(copies))])
            continue
        filled = load + load_per_copy[expert] / ranks.speed
        fits = free & (filled <= mean)
        near = fits & (ranks.region == ranks.home[expert])
        usable = near if near.any() else fits if fits.any() else free
        rank = int(np.where(usable, filled, np.inf).argmin())
        held[rank].append(expert)
        has_twin[expert, rank] = True
        load[rank] = filled[rank]
        room[rank] -= 1
    return held


@compiled
def _exchange_slots(
    expert_of_slot: NDArray[np.int32],
    quota: NDArray[np.int64],
    load: NDArray[np.float64],
    rank_of_slot: NDArray[np.int32],
    speed: NDArray[np.float64],
    region: NDArray[np.int32],
    even: float,
) -> None:
    """Exchange slots in place until the heaviest rank is at `even` or no exchange makes it lighter.

    load: float64 [P], the pairs of each slot, which go with it.
    """
    holds = np.zeros((len(speed), expert_of_slot.max() + 1), dtype=np.bool_)
    filled = np.zeros(len(speed))
    for slot in range(len(expert_of_slot)):
        holds[rank_of_slot[slot], expert_of_slot[slot]] = True
        filled[rank_of_slot[slot]] += load[slot] / speed[rank_of_slot[slot]]
    while True:
        heavy = int(filled.argmax())
        first = second = -1
        if filled[heavy] > even:
            for near in (True, False):
                if first < 0:
                    first, second = _best_exchange(
                        heavy, expert_of_slot, load, rank_of_slot, speed, region, holds, filled, near
                    )
        if first < 0:
            return
        rank, mine, theirs = rank_of_slot[second], expert_of_slot[first], expert_of_slot[second]
        filled[heavy] -= (load[first] - load[second]) / speed[heavy]
        filled[rank] += (load[first] - load[second]) / speed[rank]
        holds[heavy, mine], holds[rank, theirs], holds[heavy, theirs], holds[rank, mine] = False, False, True, True
        expert_of_slot[first], expert_of_slot[second] = theirs, mine
        quota[first], quota[second] = quota[second], quota[first]
        load[first], load[second] = load[second], load[first]


@compiled
def _best_exchange(
    heavy: int,
    expert_of_slot: NDArray[np.int32],
    load: NDArray[np.float64],
    rank_of_slot: NDArray[np.int32],
    speed: NDArray[np.float64],
    region: NDArray[np.int32],
    holds: NDArray[np.bool_],
    filled: NDArray[np.float64],
    near: bool,
) -> tuple[int, int]:
    """The slots of `heavy` and of another rank whose exchange leaves the heavier of the two lightest; -1 if none."""
    best, first, second = filled[heavy] * (1.0 - 1e-9), -1, -1
    for mine in range(len(expert_of_slot)):
        if rank_of_slot[mine] != heavy:
            continue
        for other in range(len(expert_of_slot)):
            rank = rank_of_slot[other]
            if load[other] >= load[mine] or rank == heavy or (near and region[rank] != region[heavy]):
                continue
            if holds[rank, expert_of_slot[mine]] or holds[heavy, expert_of_slot[other]]:
                continue
            moved = load[mine] - load[other]
            heavier = max(filled[heavy] - moved / speed[heavy], filled[rank] + moved / speed[rank])
            if heavier < best:
                best, first, second = heavier, mine, other
    return first, second
