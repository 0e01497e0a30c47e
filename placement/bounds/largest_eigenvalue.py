"""The largest eigenvalue of a symmetric matrix on a hyperplane, as a number that it is proven not to be above."""

import numpy as np
from numpy.typing import NDArray

_EPSILON = float(np.finfo(np.float64).eps)


def largest_eigenvalue(matrix: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """A number b, hardly above the best, such that x' matrix x <= b x' x for all x that are orthogonal to `normal`.

    matrix: [V, V]; normal: [V]. For such x the matrix may be changed by normal a' + a normal' for any a, which is
    chosen so that the normal is an eigenvector with a low eigenvalue. What LAPACK says the largest is, is only a
    guess: b I - matrix is proven to have no eigenvalue below -c trace by a Cholesky factorisation that does not break
    down, c = (V + 1) u / (1 - 2 (V + 1) u) with u the unit roundoff (S. M. Rump, Verification of positive
    definiteness, BIT 46, 2006; J. W. Demmel, 1989). Rounding on the way is bounded by norms.
    """
    size, length = len(matrix), float(normal @ normal)
    toward = matrix @ normal / length
    along = 0.5 * float(normal @ toward) / length
    low = float(np.linalg.norm(matrix)) / length
    change = np.outer(normal, (along - 0.5 * low) * normal - toward)
    flat = matrix + change + change.T
    norms = float(np.linalg.norm(matrix) + 2.0 * np.linalg.norm(change))
    guess, margin = float(np.linalg.eigvalsh(flat)[-1]), size * _EPSILON * norms
    while not _is_positive(np.eye(size) * (guess + margin) - flat):
        margin = 4.0 * margin + _EPSILON
    trace = size * (abs(guess) + margin) + norms * size**0.5
    return float(guess + margin + _EPSILON * ((size + 1) * trace + 4.0 * norms))


def _is_positive(matrix: NDArray[np.float64]) -> bool:
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True
