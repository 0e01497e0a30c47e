"""The multipliers of `shared_ranks.py` that bound best, by the alternating direction method of multipliers.

The sharing of ranks that is worth most is sought in two places at once, which are pulled together: among matrices whose
entries are in order, and among semidefinite ones. What pulls is the Y of the bound. One step is a projection by formula
and one by eigenvectors; then the price y of load rises for the rows that hold more than they may.

S. Boyd and others, Distributed optimization and statistical learning via the alternating direction method of
multipliers (2011), with over-relaxation; Z. Wen, D. Goldfarb, W. Yin, Alternating direction augmented Lagrangian
methods for semidefinite programming, Math. Prog. Comp. 2 (2010).
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.bounds.shared_ranks import Matrix, RankLimits, load_worth

_RELAXED = 1.8
# The pull is as strong as makes both of its errors alike, to a factor; it starts at this share of an expert's worth.
_ALIKE, _ADJUST = 3.0, 1.3
_FIRST_PULL = 1 / 16
# How far prices of load go, beside what would bring a row down to its load by itself; at twice as far some swing.
_LOAD_STEP = 6.0
_HALVINGS = 40


class SharedAscent:
    """shared: [V, V], what is worth most so far, entries in order; smooth [V, V] and price [V]: the multipliers."""

    def __init__(self, limits: RankLimits, start: Matrix) -> None:
        self.limits = limits
        self.shared = start
        self.smooth, self.price = np.zeros_like(start), np.zeros(len(start))
        self._semidefinite = start
        self._across = np.linalg.qr(limits.normal[:, None], mode="complete")[0][:, 1:]
        self._has_load = bool(limits.excess.any())
        self._pull = 0.0

    def climb(self, worth: Matrix, steps: int) -> None:
        """So many steps towards the sharing that has the largest sum of products with worth [V, V]."""
        if self._pull == 0.0:
            self._pull = max(_FIRST_PULL * float(worth.sum()) / self.limits.num_experts, 1.0)
        for _ in range(steps):
            self._order_entries(worth)
            before = self._semidefinite
            self._make_semidefinite()
            if self._has_load:
                self._price_load()
        moved = float(np.linalg.norm(self._semidefinite - before))
        apart = float(np.linalg.norm(self._semidefinite - self.shared))
        if apart > _ALIKE * moved:
            self._pull *= _ADJUST
        elif moved > _ALIKE * apart:
            self._pull /= _ADJUST

    def _order_entries(self, worth: Matrix) -> None:
        free = self._semidefinite + (worth - self.smooth - load_worth(self.price, self.limits.excess)) / self._pull
        project_entries(free, self.limits.num_experts, self.limits.is_single)
        self.shared = free

    def _make_semidefinite(self) -> None:
        near = _RELAXED * self.shared + (1.0 - _RELAXED) * self._semidefinite
        sought = near + self.smooth / self._pull
        values, vectors = np.linalg.eigh(self._across.T @ sought @ self._across)
        first = int(np.searchsorted(values, 0.0))
        kept = self._across @ vectors[:, first:]
        self._semidefinite = (kept * values[first:]) @ kept.T
        self.smooth = self.smooth + self._pull * (near - self._semidefinite)

    def _price_load(self) -> None:
        excess = self.limits.excess
        step = _LOAD_STEP * self._pull / float(excess @ excess)
        self.price = np.maximum(self.price + step * (self.shared @ excess), 0.0)


@compiled
def project_entries(free: Matrix, num_experts: int, is_single: bool) -> None:
    """Bring free [V, V], symmetric, in place to the nearest matrix whose entries are in order.

    Entries are in 0..1, ranks share nothing, and an expert's diagonal is the sum of its entries with ranks: at least 1,
    or 1 where copies are single.
    """
    E, V = num_experts, len(free)
    for e in range(E):
        for f in range(e):
            free[e, f] = min(max(free[e, f], 0.0), 1.0)
            free[f, e] = free[e, f]
    free[E:, E:] = np.eye(V - E)
    for e in range(E):
        with_ranks = free[e, E:]
        rise = _rise_to(with_ranks, 1.0, 0.0)
        if not is_single:
            # The diagonal falls by twice what each entry rises.
            rise = max(rise, _rise_to(with_ranks, free[e, e], 2.0))
        copies = 0.0
        for r in range(V - E):
            value = min(max(with_ranks[r] + rise, 0.0), 1.0)
            free[e, E + r] = value
            free[E + r, e] = value
            copies += value
        free[e, e] = copies


@compiled
def _rise_to(entries: NDArray[np.float64], total: float, slope: float) -> float:
    """The x with sum of (entries + x), each within 0..1, equal to total - slope * x."""
    reach = abs(total) + 1.0
    for value in entries:
        reach = max(reach, abs(value) + 1.0)
    low, high = -reach, reach
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        held = slope * middle
        for value in entries:
            held += min(max(value + middle, 0.0), 1.0)
        if held > total:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)
