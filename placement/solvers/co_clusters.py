"""Which rows and which experts belong together: spectral clustering, of co-activation or of a matrix of both (Dhillon).

Rows are requests or token ids, with counts of the experts that they use. The leading singular vectors of the matrix,
its rows and columns scaled to equal weight, show rows and experts in one space, where k-means finds the clusters.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from specmoe.artifact import Array


def counts_of_rows(row_of_token: NDArray[np.int32], expert_ids: Array, num_experts: int) -> csr_array:
    """float64 sparse [N, E]: how often the tokens of each row use each expert of a layer; expert_ids: [T, K]."""
    rows = np.repeat(row_of_token, expert_ids.shape[1])
    shape = (int(row_of_token.max()) + 1, num_experts)
    return csr_array((np.ones(len(rows)), (rows, expert_ids.ravel().astype(np.int64))), shape=shape)


def co_clusters(counts: csr_array, num_clusters: int, seed: int) -> NDArray[np.int32]:
    """int32 [N]: the cluster of each row; counts: float64 sparse [N, M], how often row n uses column m."""
    from sklearn.cluster import SpectralCoclustering
    from sklearn.exceptions import ConvergenceWarning

    used = counts[:, np.flatnonzero(counts.sum(axis=0) > 0)]
    if num_clusters == 1 or min(used.shape) <= num_clusters:
        return np.arange(counts.shape[0], dtype=np.int32) % num_clusters
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: those that exist are what there is to find.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = SpectralCoclustering(num_clusters, random_state=seed).fit(used).row_labels_
    return np.asarray(labels, dtype=np.int32)


def coactivation_pull(expert_ids: Array, num_experts: int, num_clusters: int, seed: int) -> NDArray[np.float64]:
    """float64 [E, R]: how near each expert is to each cluster of experts; expert_ids: [T, K], of one layer."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    used = np.zeros((len(expert_ids), num_experts), dtype=np.float32)
    np.put_along_axis(used, expert_ids.astype(np.int64), 1.0, axis=1)
    together = (used.T @ used).astype(np.float64)
    np.fill_diagonal(together, 0.0)
    degree = np.sqrt(np.maximum(together.sum(axis=1), 1.0))
    _, vectors = np.linalg.eigh(together / degree[:, None] / degree[None, :])
    features = vectors[:, -num_clusters:] / degree[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        centres = KMeans(num_clusters, n_init=5, random_state=seed).fit(features).cluster_centers_
    pull: NDArray[np.float64] = -((features[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return pull
