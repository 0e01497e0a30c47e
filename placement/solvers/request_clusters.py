"""A first guess of which requests share a home: k-means on what they load, filled evenly."""

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack
from scipy.sparse.linalg import LinearOperator, svds

from specmoe.placement.solvers.home_prices import priced_shares
from specmoe.placement.solvers.requests import Requests
from specmoe.profiler.routing_profile import RoutingSample

_DIMENSIONS = 48
_DENSE_ROWS = 4096  # past this many requests a dense matrix of all experts' shares is too large
_COLUMNS = 4096
_ROUNDS = 300


def request_features(sample: RoutingSample, requests: Requests, num_logical_experts: int) -> NDArray[np.float64]:
    """float64 [Q, D]: each request's shares of every layer's experts, centred, reduced to its main directions.

    Of very many experts in all the layers, those of some layers.
    """
    num_layers, top_k = sample.expert_ids.shape[1:]
    layers = np.unique(np.linspace(0, num_layers - 1, max(1, _COLUMNS // num_logical_experts)).astype(np.int64))
    rows = np.repeat(requests.request_of_token, top_k)
    shape = (requests.num_requests, num_logical_experts)
    counts = hstack(
        [csr_array((np.ones(len(rows)), (rows, sample.expert_ids[:, layer].ravel())), shape=shape) for layer in layers]
    ).tocsr()
    top_k *= len(layers)
    shares = csr_array(counts.multiply(1.0 / (requests.lengths[:, None] * top_k)))
    mean = (requests.lengths @ shares) / requests.lengths.sum()
    return _main_directions(shares, mean)


def _main_directions(rows: csr_array, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [Q, D]: the rows without their mean, along the directions in which they differ most."""
    if rows.shape[0] <= _DENSE_ROWS:
        left, scale, _ = np.linalg.svd(rows.toarray() - mean, full_matrices=False)
    else:
        centred = LinearOperator(
            rows.shape,
            matvec=lambda vector: rows @ vector - mean @ vector,
            rmatvec=lambda vector: rows.T @ vector - mean * vector.sum(),
            dtype=np.float64,
        )
        left, scale, _ = svds(centred, k=min(_DIMENSIONS, min(rows.shape) - 1), rng=np.random.default_rng(0))
    reduced: NDArray[np.float64] = (left * scale)[:, :_DIMENSIONS]
    return reduced


def clustered_homes(
    features: NDArray[np.float64], lengths: NDArray[np.int64], ep_size: int, seed: int
) -> NDArray[np.float64]:
    """float64 [Q, R], one 1 per row: requests by cluster, so that every rank has about as many tokens."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(features) <= ep_size:
        return np.eye(ep_size)[np.arange(len(features)) % ep_size]
    with warnings.catch_warnings():
        # Fewer distinct requests than ranks: the prices below still fill every rank.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(ep_size, n_init=1, random_state=seed).fit(features, sample_weight=lengths)
    distance = ((features[:, None, :] - model.cluster_centers_[None]) ** 2).sum(axis=2)
    scale = max(float(distance.std()), 1e-12)
    return even_homes(distance / scale, lengths)


def even_homes(cost: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [Q, R], one 1 per row: the cheapest home for each request, under prices that fill ranks evenly."""
    ep_size = cost.shape[1]
    price = np.zeros(ep_size)
    target = np.full(ep_size, 1.0 / ep_size)
    priced_shares(cost, lengths.astype(np.float64), target, price, 0.02, _ROUNDS)
    chosen: NDArray[np.float64] = np.eye(ep_size)[(cost + price).argmin(axis=1)]
    return chosen
