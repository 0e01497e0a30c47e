"""The metrics of a placement: what a trace costs under a plan, per MoE layer and as the mean over layers.

With token t at home on h(t), ranks(t) the ranks that serve its K experts, and nodes likewise:

    remote_copies_per_token   = mean over t of |ranks(t) \\ {h(t)}|
    internode_copies_per_token = mean over t of |nodes(t) \\ {node(h(t))}|
    local_activation_rate     = share of the (token, expert) pairs served on h(t)
    load_imbalance            = heaviest rank's pairs / mean rank's pairs; balancedness = 1 / load_imbalance
    token_imbalance           = most tokens at home on one rank / mean over ranks

Load is counted in pairs, whatever the ranks' relative speed.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.homes import homes_of
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingSample


@dataclass(frozen=True, kw_only=True)
class PlacementMetrics:
    """The metrics of one layer, or their means over layers; the module's text defines each."""

    remote_copies_per_token: float
    internode_copies_per_token: float
    local_activation_rate: float
    load_imbalance: float
    balancedness: float
    token_imbalance: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


METRIC_NAMES = tuple(field.name for field in fields(PlacementMetrics))


@dataclass(frozen=True, kw_only=True)
class LayerTraffic:
    """What one layer's trace costs, as whole numbers.

    remote_copies, internode_copies: sums over tokens. local_pairs: pairs served at home. pairs_of_rank: int64 [R], the
    (token, expert) pairs that each rank serves. tokens_of_rank: int64 [R], the tokens at home on each rank.
    """

    num_tokens: int
    remote_copies: int
    internode_copies: int
    local_pairs: int
    pairs_of_rank: NDArray[np.int64]
    tokens_of_rank: NDArray[np.int64]

    def metrics(self) -> PlacementMetrics:
        """The metrics of this layer; there must be at least one token."""
        load_imbalance = _max_over_mean(self.pairs_of_rank)
        return PlacementMetrics(
            remote_copies_per_token=self.remote_copies / self.num_tokens,
            internode_copies_per_token=self.internode_copies / self.num_tokens,
            local_activation_rate=self.local_pairs / int(self.pairs_of_rank.sum()),
            load_imbalance=load_imbalance,
            balancedness=1.0 / load_imbalance,
            token_imbalance=_max_over_mean(self.tokens_of_rank),
        )


def measure_plan(
    plan: PlacementPlan, sample: RoutingSample, homes: NDArray[np.int32] | None = None
) -> list[PlacementMetrics]:
    """The metrics of each layer of `plan` over a sample of the same model; homes: int32 [L, T], worked out if None."""
    return [layer.metrics() for layer in traffic_of_layers(plan, sample, homes)]


def traffic_of_layers(
    plan: PlacementPlan, sample: RoutingSample, homes: NDArray[np.int32] | None = None
) -> list[LayerTraffic]:
    """What each layer of `plan` costs, counted side by side; arguments as of `measure_plan`."""
    where = homes_of(plan, sample) if homes is None else homes
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(lambda layer: layer_traffic(plan, sample, layer, where[layer]), range(plan.num_layers)))


def mean_metrics(layers: Sequence[PlacementMetrics]) -> PlacementMetrics:
    """The mean over layers of every metric."""
    means = {name: float(np.mean([getattr(layer, name) for layer in layers])) for name in METRIC_NAMES}
    return PlacementMetrics(**means)


def layer_traffic(plan: PlacementPlan, sample: RoutingSample, layer: int, homes: NDArray[np.int32]) -> LayerTraffic:
    """What row `layer` of a sample costs under `plan`; homes: int32 [T], that layer's home ranks."""
    served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes)
    return count_traffic(served_by, homes, plan.topology.node_of_rank)


def count_traffic(
    served_by: NDArray[np.int16], homes: NDArray[np.int32], node_of_rank: NDArray[np.int32]
) -> LayerTraffic:
    """Count one layer: served_by: int16 [T, K], the serving rank of each pair; homes: int32 [T]; node_of_rank: [R]."""
    ep_size = len(node_of_rank)
    rows = np.ascontiguousarray(homes, dtype=np.int32)
    pairs_of_rank = np.zeros(ep_size, dtype=np.int64)
    totals = _count(np.ascontiguousarray(served_by), rows, node_of_rank.astype(np.int32), pairs_of_rank)
    return LayerTraffic(
        num_tokens=len(served_by),
        remote_copies=int(totals[0]),
        internode_copies=int(totals[1]),
        local_pairs=int(totals[2]),
        pairs_of_rank=pairs_of_rank,
        tokens_of_rank=np.bincount(rows, minlength=ep_size),
    )


@compiled
def _count(
    served_by: NDArray[np.int16],
    homes: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
    pairs_of_rank: NDArray[np.int64],
) -> NDArray[np.int64]:
    """int64 [3]: remote copies, internode copies, local pairs; adds to `pairs_of_rank` [R]."""
    num_tokens, top_k = served_by.shape
    seen_rank = np.full(len(node_of_rank), -1, dtype=np.int64)
    seen_node = np.full(len(node_of_rank), -1, dtype=np.int64)
    totals = np.zeros(3, dtype=np.int64)
    for token in range(num_tokens):
        home = homes[token]
        seen_rank[home] = token
        seen_node[node_of_rank[home]] = token
        for k in range(top_k):
            rank = served_by[token, k]
            pairs_of_rank[rank] += 1
            if rank == home:
                totals[2] += 1
            if seen_rank[rank] != token:
                seen_rank[rank] = token
                totals[0] += 1
            if seen_node[node_of_rank[rank]] != token:
                seen_node[node_of_rank[rank]] = token
                totals[1] += 1
    return totals


def _max_over_mean(counts: NDArray[np.int64]) -> float:
    return float(counts.max() / counts.mean())
