"""Ridge regression: both forms against the textbook, and what they say of rows that they have not seen."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from specmoe.placement.solvers import ridge as ridge_module
from specmoe.placement.solvers.ridge import RIDGES, ridge_regression, solve_normal_equations


@pytest.fixture
def problem():
    rng = np.random.default_rng(3)
    features = csr_array(rng.random((40, 12)) * (rng.random((40, 12)) < 0.3))
    target = features @ rng.normal(size=(12, 3)) + 0.1 * rng.normal(size=(40, 3))
    return features, target


def textbook(features, target, ridge):
    dense = features.toarray()
    return np.linalg.solve(dense.T @ dense + ridge * np.eye(dense.shape[1]), dense.T @ target)


def test_conjugate_gradients_solve_the_normal_equations(problem) -> None:
    features, target = problem
    np.testing.assert_allclose(
        solve_normal_equations(features, target, 0.3), textbook(features, target, 0.3), rtol=1e-3, atol=1e-4
    )


def test_one_feature_a_row_is_solved_exactly() -> None:
    features = csr_array(np.eye(4)[[0, 1, 1, 3, 3, 3]] * 2.0)
    target = np.arange(12.0).reshape(6, 2)
    np.testing.assert_allclose(solve_normal_equations(features, target, 0.5), textbook(features, target, 0.5))


def test_leaving_one_out_is_what_fitting_without_it_says(problem) -> None:
    features, target = problem
    fit = ridge_regression(features)(target, np.ones(40))
    scale = float(np.linalg.eigvalsh((features @ features.T).toarray()).mean())
    left_out = np.arange(40) != 7
    by_hand = [(features @ textbook(features[left_out], target[left_out], ridge * scale))[7] for ridge in RIDGES]
    assert min(np.abs(fit.held_out[7] - row).max() for row in by_hand) < 1e-8


def test_many_rows_are_judged_by_the_half_that_they_are_not_in(problem, monkeypatch: pytest.MonkeyPatch) -> None:
    features, target = problem
    dual = ridge_regression(features)(target, np.ones(40))
    monkeypatch.setattr(ridge_module, "DUAL_ROWS", 10)
    primal = ridge_regression(features)(target, np.ones(40))
    scale = float(features.multiply(features).sum()) / 40
    by_hand = [(features @ textbook(features[0::2], target[0::2], ridge * scale))[1::2] for ridge in RIDGES]
    assert min(np.abs(primal.held_out[1::2] - rows).max() for rows in by_hand) < 1e-2
    error = ((primal.held_out - target) ** 2).mean()
    assert error < 0.3 * target.var()
    assert ((dual.held_out - target) ** 2).mean() < error
