"""How much experts on common ranks can be worth, over all placements: semidefinite relaxation, bounded by its dual.

Rank r is a vector z_r of zeros and ones over the vertices of `witnesses.py`: the experts that it holds, and itself.
Then shared = sum over r of z_r z_r', and for every placement

- shared is positive semidefinite, its trace is the number of ranks and slots, and shared u = 0 for u = (1, .., 1,
  -slots), as each rank holds as many experts as it has slots;
- shared[e, e] = sum over r of shared[e, r], the copies of e, is at least 1, and 1 with single copies; shared[e, r] is
  at most 1, and no two ranks share anything;
- with single copies, no two experts share more than one rank, and shared a <= 0 for a = (load, -ceiling): a rank holds
  no more load than it may, so a' z_r <= 0, and shared a is a sum of these, each where z_r has a vertex.

So for any symmetric Y and prices y >= 0 of load, with D = worth - Y - (y a' + a y') / 2 and < , > the sum of products,

    <worth, shared>  <=  <Y, shared> + <D, shared>
                     <=  largest eigenvalue of Y across u  *  trace  +  what D can give by its entries.

The relaxation is that of A. Frieze and M. Jerrum (Improved approximation algorithms for MAX k-CUT and MAX BISECTION,
Algorithmica 18, 1997) with ranks as vertices, for homes, and the load cap multiplied by each vertex.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.largest_eigenvalue import largest_eigenvalue
from specmoe.placement.bounds.layer_case import LayerCase

Matrix = NDArray[np.float64]
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True)
class RankLimits:
    """What ranks can hold. slots: int64 [R]; num_experts: E; excess: float64 [E + R], the vector a above in mean loads
    of a rank, 0 with replicas.
    """

    slots: NDArray[np.int64]
    num_experts: int
    excess: NDArray[np.float64]

    @classmethod
    def of(cls, case: LayerCase) -> "RankLimits":
        excess = np.append(case.load, -case.ceiling) / max(case.load.sum() / case.ep_size, 1.0)
        return cls(
            slots=case.slots.astype(np.int64),
            num_experts=case.num_experts,
            excess=np.zeros_like(excess) if case.has_replicas else excess,
        )

    @property
    def is_single(self) -> bool:
        return int(self.slots.sum()) == self.num_experts

    @property
    def trace(self) -> int:
        return len(self.slots) + int(self.slots.sum())

    @property
    def normal(self) -> NDArray[np.float64]:
        """float64 [E + R]: the u of the module's text."""
        return np.append(np.ones(self.num_experts), -self.slots.astype(np.float64))


def shared_by(holds: NDArray[np.bool_]) -> Matrix:
    """float64 [V, V]: how many ranks hold both of two vertices in a placement, bool [R, E]."""
    vertices = np.hstack([holds, np.eye(len(holds), dtype=np.bool_)]).astype(np.float64)
    return vertices.T @ vertices


def load_worth(price: NDArray[np.float64], excess: NDArray[np.float64]) -> Matrix:
    """(y a' + a y') / 2: what load costs at `price` [V]."""
    half = np.outer(0.5 * price, excess)
    return half + half.T


def most_worth(limits: RankLimits, worth: Matrix, smooth: Matrix, price: NDArray[np.float64]) -> float:
    """No placement has a larger sum of worth[v, w] min(1, shared[v, w]), over all v and w.

    worth: [V, V], symmetric, at least 0, and 0 for each vertex with itself and for two ranks; smooth: the Y of the
    module's text, [V, V]; price: at least 0, [V], in mean loads. Rounding is on the safe side.
    """
    E, load = limits.num_experts, load_worth(price, limits.excess)
    if not limits.is_single:
        # What two experts are worth counts once: a further common rank may cost, but must not pay.
        diagonal = smooth.diagonal()
        smooth = smooth.copy()
        smooth[:E, :E] = np.maximum(smooth[:E, :E], 0.0)
        np.fill_diagonal(smooth, diagonal)
    rest = worth - smooth - load
    pairs = np.maximum(rest[:E, :E], 0.0)
    np.fill_diagonal(pairs, 0.0)
    # A copy of an expert on a rank counts on the diagonal and, twice, with the rank.
    copies = rest.diagonal()[:E, None] + 2.0 * rest[:E, E:]
    terms = [
        largest_eigenvalue(smooth, limits.normal) * limits.trace,
        float(rest.diagonal()[E:].sum()),
        float(pairs.sum()),
        _dearest_copies(copies, int(limits.slots.sum())),
    ]
    size = np.abs(worth).sum() + np.abs(smooth).sum() + np.abs(load).sum() + abs(terms[0])
    return sum(terms) + len(worth) ** 2 * _EPSILON * float(size)


def _dearest_copies(value: Matrix, count: int) -> float:
    """The most that `count` cells of [E, R] can add up to, one of each row among them at least."""
    best = value.argmax(axis=1)
    first = value[np.arange(len(value)), best]
    others = value.copy()
    others[np.arange(len(value)), best] = -np.inf
    more = count - len(value)
    return float(first.sum() + (np.sort(others, axis=None)[-more:].sum() if more else 0.0))
