"""K-means of weighted rows: greedy k-means++ (D. Arthur and S. Vassilvitskii, 2007), then Lloyd's rounds.

The same as scikit-learn's, draw by draw, without its import, which takes longer than the clusters of any profile do.
"""

import math

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 300
# Rounds end where the centres move by no more than this part of the rows' variance.
_TOLERANCE = 1e-4


def k_means(rows: NDArray[np.float64], weight: NDArray[np.float64], num_centres: int, seed: int) -> NDArray[np.float64]:
    """float64 [C, D]: the centres of rows, float64 [N, D], that weigh `weight`, float64 [N]."""
    rng = np.random.RandomState(seed)
    mean: NDArray[np.float64] = rows.mean(axis=0)
    rows = rows - mean
    still = _TOLERANCE * float(rows.var(axis=0).mean())
    centres = _first_centres(rows, weight, num_centres, rng)
    nearest = np.full(len(rows), -1)
    for _ in range(_ROUNDS):
        before, nearest = nearest, _squared_distances(rows, centres).argmin(axis=1)
        member = np.eye(num_centres)[nearest] * weight[:, None]
        filled, moved = member.sum(axis=0), centres.copy()
        # A centre without rows stays where it is.
        moved[filled > 0] = (member.T @ rows)[filled > 0] / filled[filled > 0, None]
        shift, centres = float(((moved - centres) ** 2).sum()), moved
        if shift <= still or (nearest == before).all():
            break
    return centres + mean


def _first_centres(
    rows: NDArray[np.float64], weight: NDArray[np.float64], num_centres: int, rng: np.random.RandomState
) -> NDArray[np.float64]:
    """float64 [C, D]: rows far from each other: of a few drawn for each place, the one that leaves the rest nearest."""
    trials = 2 + int(math.log(num_centres))
    first = rng.choice(len(rows), p=weight / weight.sum())
    centres, closest = [rows[first]], _squared_distances(rows, rows[[first]])[:, 0]
    while len(centres) < num_centres:
        reached = np.cumsum(weight * closest)
        drawn = np.searchsorted(reached, rng.uniform(size=trials) * float(closest @ weight))
        drawn = np.minimum(drawn, len(rows) - 1)
        distances = np.minimum(_squared_distances(rows, rows[drawn]), closest[:, None])
        best = int((weight @ distances).argmin())
        centres.append(rows[drawn[best]])
        closest = distances[:, best]
    return np.array(centres)


def _squared_distances(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [N, C]."""
    squares = (rows**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)[None, :] - 2.0 * rows @ centres.T
    distances: NDArray[np.float64] = np.maximum(squares, 0.0)
    return distances
