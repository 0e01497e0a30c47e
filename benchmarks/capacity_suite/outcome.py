"""What one plan gives under one bound: the figures that the benchmark stores and the page shows."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One plan under one bound (factor None: none), on batches of so many requests; shares are of all pairs.

    heaviest_load: the pairs of the busiest rank over the mean rank's share of all pairs that the router chose, in each
    batch and layer, averaged. excess: the pairs above that mean, summed over ranks, as a share: what has to be dropped
    at least for an even load, if nothing is rerouted.
    """

    attention: str
    batch_requests: int
    plan: str
    division: str | None
    level: str | None
    overflow: str | None
    factor: float | None
    perplexity: float
    heaviest_load: float
    excess: float
    dropped: float
    rerouted: float
