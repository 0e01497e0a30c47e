"""Request affinity: a linear prediction, from the tokens known when a request arrives, of what each home would save it.

    pull(q, r) = sum over q's known tokens v of table[v, r],   fitted by ridge regression to the copies that r saves q

on the known tokens' frequencies, weighted by inverse document frequency.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from specmoe.placement.solvers.home_prices import priced_shares
from specmoe.placement.solvers.requests import Requests
from specmoe.placement.solvers.ridge import Fit, ridge_regression

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
    """What depends on requests alone. idf: float64 [D]; regression: of anything per request on their features."""

    requests: Requests
    idf: NDArray[np.float64]
    regression: Fit

    @classmethod
    def of(cls, requests: Requests) -> "AffinityModel":
        """Prepare the regression; the requests must have token ids."""
        known = requests.known_tokens
        assert known is not None
        occurs_in = np.bincount(known.indices, minlength=known.shape[1])
        idf = np.log((requests.num_requests + 1.0) / (occurs_in + 1.0))
        tokens = np.maximum(known.sum(axis=1), 1.0)
        features = csr_array(known.multiply(idf[None, :]).multiply(1.0 / tokens[:, None]))
        return cls(requests=requests, idf=idf, regression=ridge_regression(features))

    def fit(self, cost: NDArray[np.float64]) -> Affinity:
        """The affinity for requests that cost `cost`, float64 [Q, R], copies per token by home."""
        saved = cost.mean(axis=1, keepdims=True) - cost
        mean = np.average(saved, axis=0, weights=self.requests.lengths)
        target = saved - mean
        fit = self.regression(target, self.requests.lengths.astype(np.float64))
        bias = mean - self._prices(fit.held_out + mean)
        table = self.idf[:, None] * fit.coefficients
        return Affinity(table=table, bias=bias, held_out_pull=fit.held_out + bias)

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
