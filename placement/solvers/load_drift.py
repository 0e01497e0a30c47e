"""How far loads drift on new requests: the profile's own requests redrawn with replacement, as many as there are.

A redraw lies as far from the profile as the profile lies from all the requests that it was drawn from: the bootstrap.
What a plan's heaviest rank has in the middle of such redraws is what to expect of it on new requests. That cannot be
read off the profile, whose loads the search has evened out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.placement.check import relative_load
from specmoe.placement.homes import homes_of, request_starts
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingSample

_REDRAWS = 100
# Neighbouring requests are drawn together past so many: sums over random requests vary as much as before.
_MOST_BLOCKS = 2048


@dataclass(frozen=True, kw_only=True)
class Redraws:
    """block_of_token: int64 [T], which request, or run of requests, a token belongs to; times: float64 [B, N], how
    often each redraw has each of them.
    """

    block_of_token: NDArray[np.int64]
    times: NDArray[np.float64]

    @classmethod
    def of(cls, sample: RoutingSample, seed: int) -> "Redraws":
        """Redraws of a sample's requests; of its tokens where requests are unknown."""
        starts = request_starts(sample.request_ids, sample.num_tokens)
        per_block = -(-len(starts) // _MOST_BLOCKS)
        lengths = np.diff(starts[::per_block], append=sample.num_tokens)
        even = np.full(len(lengths), 1.0 / len(lengths))
        times = np.random.default_rng(seed).multinomial(len(lengths), even, size=_REDRAWS)
        block = np.repeat(np.arange(len(lengths)), lengths)
        return cls(block_of_token=block, times=times.astype(np.float64))

    def pairs(self, labels: Array, num_labels: int) -> NDArray[np.float64]:
        """float64 [B, num_labels]: how many (token, expert) pairs each redraw has of each label.

        labels: integers [T, K], the expert of each pair, or the rank that serves it.
        """
        cells = self.block_of_token[:, None] * num_labels + labels
        counts = np.bincount(cells.ravel(), minlength=self.num_blocks * num_labels).reshape(-1, num_labels)
        redrawn: NDArray[np.float64] = self.times @ counts
        return redrawn

    @property
    def num_blocks(self) -> int:
        return int(self.times.shape[1])

    def means(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """float64 [B]: the mean over the tokens of each redraw; values: float [T]."""
        total = np.bincount(self.block_of_token, weights=values, minlength=self.num_blocks)
        tokens = np.bincount(self.block_of_token, minlength=self.num_blocks)
        mean: NDArray[np.float64] = (self.times @ total) / (self.times @ tokens)
        return mean


def expected_heaviest(
    redrawn: NDArray[np.float64], rank_of_expert: NDArray[np.int32], speed: NDArray[np.float64]
) -> float:
    """The heaviest rank's load over the mean to expect of one layer with one copy of each expert.

    redrawn: float64 [B, E], each expert's pairs; rank_of_expert: int32 [E]; speed: float64 [R].
    """
    on_rank = (rank_of_expert[:, None] == np.arange(len(speed))[None, :]).astype(np.float64)
    return float(np.median(relative_load(redrawn @ on_rank, speed).max(axis=1)))


def expected_imbalance(plan: PlacementPlan, sample: RoutingSample) -> float:
    """The `load_imbalance` to expect of `plan` on new requests like those of the sample, as the mean over layers."""
    redraws, homes = Redraws.of(sample, plan.seed), homes_of(plan, sample)
    alike = np.ones(plan.ep_size)
    heaviest = np.zeros((plan.num_layers, len(redraws.times)))
    for layer in range(plan.num_layers):
        served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes[layer])
        heaviest[layer] = relative_load(redraws.pairs(served_by, plan.ep_size), alike).max(axis=1)
    return float(np.median(heaviest.mean(axis=0)))
