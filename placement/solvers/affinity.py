"""Request affinity: a linear prediction, from the tokens known when a request arrives, of what each home would cost it.

Ridge regression on the requests' known-token frequencies x, weighted by inverse document frequency, in its dual form:

    pull(q) = -cost(q) approximately K (K + lambda I)^-1 y,   K = X X^T,   y = mean saved copies per token by home

so the table is X^T (K + lambda I)^-1 y, one row per token id; a request's pull is the sum over its known tokens. What
the table would have said of a request that it was not fitted to follows in closed form: y - (G y) / diag(G) with G the
inverse. The weight of the ridge is the one with the least squared error of that.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from specmoe.placement.solvers.home_prices import priced_shares
from specmoe.placement.solvers.requests import Requests

_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_PRICE_TEMPERATURE = 0.01
_PRICE_ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class Affinity:
    """table: float64 [D, R], by the requests' distinct token ids. bias: float64 [R], added to every id's row, known or
    not. held_out_pull: float64 [Q, R], per token, of each request by a table that it had no part in.
    """

    table: NDArray[np.float64]
    bias: NDArray[np.float64]
    held_out_pull: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class AffinityModel:
    """What depends on requests alone. features: float64 [Q, D] sparse; values, vectors: the kernel's eigensystem."""

    requests: Requests
    features: csr_array
    idf: NDArray[np.float64]
    values: NDArray[np.float64]
    vectors: NDArray[np.float64]

    @classmethod
    def of(cls, requests: Requests) -> "AffinityModel":
        """Prepare the regression; the requests must have token ids."""
        known = requests.known_tokens
        assert known is not None
        occurs_in = np.bincount(known.indices, minlength=known.shape[1])
        idf = np.log((requests.num_requests + 1.0) / (occurs_in + 1.0))
        tokens = np.maximum(known.sum(axis=1), 1.0)
        features = known.multiply(idf[None, :]).multiply(1.0 / tokens[:, None]).tocsr()
        kernel = (features @ features.T).toarray()
        values, vectors = np.linalg.eigh(kernel)
        return cls(requests=requests, features=features, idf=idf, values=np.maximum(values, 0.0), vectors=vectors)

    def fit(self, cost: NDArray[np.float64]) -> Affinity:
        """The affinity for requests that cost `cost`, float64 [Q, R], copies per token by home."""
        saved = cost.mean(axis=1, keepdims=True) - cost
        mean = np.average(saved, axis=0, weights=self.requests.lengths)
        target = saved - mean
        best, best_error, best_held_out = np.zeros(0), np.inf, target
        scale = float(self.values.mean()) or 1.0
        for ridge in _RIDGES:
            inverse = (self.vectors / (self.values + ridge * scale)) @ self.vectors.T
            weights = inverse @ target
            held_out = target - weights / np.diag(inverse)[:, None]
            error = float(np.average(((target - held_out) ** 2).sum(axis=1), weights=self.requests.lengths))
            if error < best_error:
                best, best_error, best_held_out = weights, error, held_out
        bias = mean - self._prices(best_held_out + mean)
        table = self.idf[:, None] * (self.features.T @ best)
        return Affinity(table=table, bias=bias, held_out_pull=best_held_out + bias)

    def _prices(self, pull: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [R]: what evens out how many tokens each rank pulls most."""
        ep_size = pull.shape[1]
        price = np.zeros(ep_size)
        target = np.full(ep_size, 1.0 / ep_size)
        weight = self.requests.lengths.astype(np.float64)
        priced_shares(-pull, weight, target, price, _PRICE_TEMPERATURE, _PRICE_ROUNDS)
        return price


def affinity_tensor(affinity: Affinity, requests: Requests, vocab_size: int) -> NDArray[np.float16]:
    """float16 [V, R]: the plan's table, scaled to a largest entry of 1; ids without an entry pull by the bias alone."""
    assert requests.token_ids is not None
    table = np.tile(affinity.bias, (vocab_size, 1))
    table[requests.token_ids] += affinity.table
    table -= table.mean(axis=1, keepdims=True)
    return (table / max(float(np.abs(table).max()), 1e-12)).astype(np.float16)
