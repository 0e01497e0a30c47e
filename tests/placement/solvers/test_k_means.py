"""K-means without scikit-learn: the same centres as scikit-learn finds."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from specmoe.placement.solvers.k_means import k_means


@pytest.mark.parametrize(("rows", "centres"), [(40, 3), (500, 8), (300, 32)])
def test_centres_are_those_of_scikit_learn(rows, centres):
    rng = np.random.default_rng(rows)
    points = rng.standard_normal((rows, 6)) + 4.0 * rng.standard_normal((centres, 6))[rng.integers(centres, size=rows)]
    weight = rng.integers(1, 300, size=rows).astype(np.float64)
    for seed in range(3):
        known = KMeans(centres, n_init=1, random_state=seed).fit(points, sample_weight=weight)
        assert k_means(points, weight, centres, seed) == pytest.approx(known.cluster_centers_, rel=1e-6, abs=1e-9)


def test_fewer_distinct_rows_than_centres_leave_some_centres_where_others_are():
    points = np.repeat(np.array([[0.0, 1.0], [5.0, 5.0]]), 10, axis=0)
    found = k_means(points, np.ones(20), 4, seed=0)
    assert np.unique(found.round(9), axis=0).tolist() == [[0.0, 1.0], [5.0, 5.0]]
