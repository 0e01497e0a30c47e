"""Ridge regression of every request's savings on sparse features, with what it says of requests it has not seen.

The weight of the ridge is the one of `RIDGES`, relative to the kernel's mean eigenvalue, with the least squared error
on requests left out. Few requests: the dual form, where leaving each one out has a closed form, y - (G y) / diag(G)
with G = (X X^T + lambda I)^-1. Many: the primal normal equations by conjugate gradients, one half fitted, the other
judged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
DUAL_ROWS = 2048  # the dual's eigensystem costs the cube of this

_GRADIENT_STEPS = 200
_TOLERANCE = 1e-5

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RidgeFit:
    """coefficients: float64 [D, R]; held_out: float64 [Q, R], what fits without the row in question say of it."""

    coefficients: Matrix
    held_out: Matrix


Fit = Callable[[Matrix, Matrix], RidgeFit]


def ridge_regression(features: csr_array) -> Fit:
    """A function (target float64 [Q, R], weight float64 [Q], of the errors) -> fit for `features` float64 [Q, D]."""
    return _dual(features) if features.shape[0] <= DUAL_ROWS else _primal(features)


def _dual(features: csr_array) -> Fit:
    values, vectors = np.linalg.eigh((features @ features.T).toarray())
    values = np.maximum(values, 0.0)
    scale = float(values.mean()) or 1.0

    def fit(target: Matrix, weight: Matrix) -> RidgeFit:
        def held_out(ridge: float) -> Matrix:
            inverse = (vectors / (values + ridge * scale)) @ vectors.T
            left_out: Matrix = target - (inverse @ target) / np.diag(inverse)[:, None]
            return left_out

        ridge, best = _least_error(held_out, target, weight)
        solved = (vectors / (values + ridge * scale)) @ (vectors.T @ target)
        return RidgeFit(coefficients=features.T @ solved, held_out=best)

    return fit


def _primal(features: csr_array) -> Fit:
    scale = float(features.multiply(features).sum()) / features.shape[0] or 1.0
    halves = (slice(0, None, 2), slice(1, None, 2))
    parts = [features[half] for half in halves]

    def fit(target: Matrix, weight: Matrix) -> RidgeFit:
        def held_out(ridge: float) -> Matrix:
            predicted = np.empty_like(target)
            for one, other, part, judged in zip(halves, halves[::-1], parts, parts[::-1], strict=True):
                predicted[other] = judged @ solve_normal_equations(part, target[one], ridge * scale)
            return predicted

        ridge, best = _least_error(held_out, target, weight)
        return RidgeFit(coefficients=solve_normal_equations(features, target, ridge * scale), held_out=best)

    return fit


def _least_error(held_out: Callable[[float], Matrix], target: Matrix, weight: Matrix) -> tuple[float, Matrix]:
    """The ridge with the least held-out error, and its predictions."""
    tried = [(ridge, held_out(ridge)) for ridge in RIDGES]
    errors = [float(np.average(((target - found) ** 2).sum(axis=1), weights=weight)) for _, found in tried]
    return tried[int(np.argmin(errors))]


def solve_normal_equations(features: csr_array, target: Matrix, ridge: float) -> Matrix:
    """float64 [D, R]: the c with `(X^T X + ridge I) c = X^T target`, all columns at once.

    Conjugate gradients preconditioned by the diagonal, which is exact where every row has one feature (a request of a
    single known token).
    """
    transposed = features.T.tocsr()
    diagonal = (transposed.multiply(transposed).sum(axis=1) + ridge)[:, None]
    right = transposed @ target
    found: Matrix = right / diagonal
    residual = right - (transposed @ (features @ found) + ridge * found)
    direction = step = residual / diagonal
    product = (residual * step).sum(axis=0)
    enough = _TOLERANCE * np.linalg.norm(right, axis=0)
    for _ in range(_GRADIENT_STEPS):
        if (np.linalg.norm(residual, axis=0) <= enough).all():
            break
        image = transposed @ (features @ direction) + ridge * direction
        length = product / np.maximum((direction * image).sum(axis=0), 1e-300)
        found = found + length * direction
        residual = residual - length * image
        step = residual / diagonal
        renewed = (residual * step).sum(axis=0)
        direction = step + renewed / np.maximum(product, 1e-300) * direction
        product = renewed
    return found
