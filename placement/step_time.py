"""A modelled time of one MoE layer's step, from bytes, links and the heaviest rank.

A step has `tokens_per_step` tokens, routed and placed as the trace's are on average. Dispatch is hierarchical: a row
goes once to every other node of its token, to the rank with the home's number there (modulo the node's ranks), which
passes it on within the node; ranks of the home's own node get it directly. A rank sends and receives at once, over
both kinds of link at once:

    exchange = intra_node_latency + inter_node_latency (each where such rows are sent)
             + max over ranks, directions and kinds of link of  rows * row_bytes / bandwidth
    step     = 2 * exchange + heaviest rank's pairs over its speed * pair_us

(dispatch and combine move the same rows). It leaves out all that a plan cannot change, and contention between nodes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.errors import UsageError
from specmoe.placement.homes import homes_of
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingSample

BYTES_PER_US_PER_GB_PER_S = 1e3


@dataclass(frozen=True, kw_only=True)
class StepModel:
    """row_bytes: of one hidden state on the wire; pair_us: what one (token, expert) pair takes on a rank of speed 1."""

    row_bytes: int
    pair_us: float = 0.0
    tokens_per_step: int = 4096

    def __post_init__(self) -> None:
        if self.row_bytes < 1:
            raise UsageError(f"row_bytes is {self.row_bytes}, at least 1 was expected")
        if not 0 <= self.pair_us < float("inf"):
            raise UsageError(f"pair_us is {self.pair_us}, a number of microseconds was expected")
        if self.tokens_per_step < 1:
            raise UsageError(f"tokens_per_step is {self.tokens_per_step}, at least 1 was expected")


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Modelled microseconds of one layer's step, or their means over layers."""

    exchange_us: float
    compute_us: float
    step_us: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mean_step_time(layers: Sequence[StepTime]) -> StepTime:
    names = [field.name for field in fields(StepTime)]
    return StepTime(**{name: float(np.mean([getattr(layer, name) for layer in layers])) for name in names})


def step_times(plan: PlacementPlan, sample: RoutingSample, model: StepModel) -> list[StepTime]:
    """The modelled step of each layer of `plan` on a sample of the same model.

    Raises `UsageError` where the plan's topology gives no bandwidth for a kind of link that it has.
    """
    _require_bandwidths(plan.topology)
    homes = homes_of(plan, sample)
    times = []
    for layer in range(plan.num_layers):
        served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes[layer])
        times.append(layer_step_time(served_by, homes[layer], plan.topology, model))
    return times


def layer_step_time(
    served_by: NDArray[np.int16], homes: NDArray[np.int32], topology: Topology, model: StepModel
) -> StepTime:
    """One layer; served_by: int16 [T, K], the serving rank of each pair; homes: int32 [T]."""
    node_of_rank = topology.node_of_rank
    first_rank = np.searchsorted(node_of_rank, np.arange(topology.num_nodes)).astype(np.int32)
    sizes = np.asarray(topology.ranks_per_node, dtype=np.int32)
    rows = np.zeros((2, 2, topology.ep_size), dtype=np.int64)
    _count_rows(np.ascontiguousarray(served_by), np.ascontiguousarray(homes), node_of_rank, first_rank, sizes, rows)
    steps = len(served_by) / model.tokens_per_step
    exchange = _exchange_us(rows.max(axis=(1, 2)) / steps, topology, model)
    pairs = np.bincount(served_by.ravel(), minlength=topology.ep_size) / steps
    compute = float((pairs / topology.speed_of_rank).max()) * model.pair_us
    return StepTime(exchange_us=exchange, compute_us=compute, step_us=2 * exchange + compute)


def _exchange_us(busiest_rows: NDArray[np.float64], topology: Topology, model: StepModel) -> float:
    """One exchange; busiest_rows: float64 [2], of a rank in one direction, within nodes and between them."""
    links = (
        (busiest_rows[0], topology.intra_node_gb_per_s, topology.intra_node_latency_us),
        (busiest_rows[1], topology.inter_node_gb_per_s, topology.inter_node_latency_us),
    )
    latency, transfer = 0.0, 0.0
    for rows, bandwidth, link_latency in links:
        if rows > 0 and bandwidth is not None:
            latency += link_latency or 0.0
            transfer = max(transfer, float(rows) * model.row_bytes / (bandwidth * BYTES_PER_US_PER_GB_PER_S))
    return latency + transfer


def _require_bandwidths(topology: Topology) -> None:
    needed = ["inter_node_gb_per_s"] if topology.num_nodes > 1 else []
    needed += ["intra_node_gb_per_s"] if max(topology.ranks_per_node) > 1 else []
    missing = [name for name in needed if getattr(topology, name) is None]
    if missing:
        raise UsageError(
            f"a modelled step time needs {' and '.join(missing)} in the plan's topology; "
            "solve with a --topology file that gives it"
        )


@compiled
def _count_rows(
    served_by: NDArray[np.int16],
    homes: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
    first_rank: NDArray[np.int32],
    node_sizes: NDArray[np.int32],
    rows: NDArray[np.int64],
) -> None:
    """Add to `rows` [within or between nodes, sent or received, R] the rows of every token."""
    num_tokens, top_k = served_by.shape
    has_rank = np.full(len(node_of_rank), -1, dtype=np.int64)
    has_node = np.full(len(node_sizes), -1, dtype=np.int64)
    for token in range(num_tokens):
        home = homes[token]
        home_node = node_of_rank[home]
        has_rank[home] = token
        has_node[home_node] = token
        for k in range(top_k):
            rank = served_by[token, k]
            if has_rank[rank] == token:
                continue
            node = node_of_rank[rank]
            sender = home
            if node != home_node:
                sender = first_rank[node] + (home - first_rank[home_node]) % node_sizes[node]
                if has_node[node] != token:
                    has_node[node] = token
                    rows[1, 0, home] += 1
                    rows[1, 1, sender] += 1
                    has_rank[sender] = token
            if has_rank[rank] != token:
                has_rank[rank] = token
                rows[0, 0, sender] += 1
                rows[0, 1, rank] += 1
