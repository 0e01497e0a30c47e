"""What one placement does to a trace, rank by rank: who sends to whom, who carries how much, who sits beside whom."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.placement.homes import homes_of
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingSample


@dataclass(frozen=True, kw_only=True)
class PlacementDetail:
    """rows: float64 [R, R], hidden states per token from home rank (first index) to serving rank, mean over layers, the
    diagonal 0: its sum is `remote_copies_per_token`. node_rows: float64 [N, N], the same between nodes, a row counted
    once for each other node: its sum is `internode_copies_per_token`. load: float64 [L, R], a rank's (token, expert)
    pairs over the mean rank's.
    """

    rows: NDArray[np.float64]
    node_rows: NDArray[np.float64]
    load: NDArray[np.float64]


def placement_detail(plan: PlacementPlan, sample: RoutingSample) -> PlacementDetail:
    """The detail of `plan` over a sample of the same model."""
    homes, node_of_rank = homes_of(plan, sample), plan.topology.node_of_rank.astype(np.int32)
    R, N = plan.ep_size, plan.topology.num_nodes

    def one_layer(layer: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes[layer])
        rows, node_rows = np.zeros((R, R), dtype=np.int64), np.zeros((N, N), dtype=np.int64)
        home = np.ascontiguousarray(homes[layer], dtype=np.int32)
        _count_rows(np.ascontiguousarray(served_by), home, node_of_rank, rows, node_rows)
        pairs = np.bincount(served_by.ravel(), minlength=R)
        return rows, node_rows, pairs / pairs.mean()

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        by_layer = list(pool.map(one_layer, range(plan.num_layers)))
    scale = 1.0 / (sample.num_tokens * plan.num_layers)
    return PlacementDetail(
        rows=np.sum([rows for rows, _, _ in by_layer], axis=0) * scale,
        node_rows=np.sum([node_rows for _, node_rows, _ in by_layer], axis=0) * scale,
        load=np.stack([load for _, _, load in by_layer]),
    )


def share_together(plan: PlacementPlan, coactivation_counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [L]: of all pairs of different experts that a token used at once, the share with a rank that holds both.

    coactivation_counts: int64 [L, E, E], as in the profile. 0 where no token used two experts.
    """
    shares = np.zeros(plan.num_layers)
    for layer in range(plan.num_layers):
        counts = coactivation_counts[layer].astype(np.float64)
        np.fill_diagonal(counts, 0.0)
        held = plan.holds[layer].astype(np.float32)
        shares[layer] = counts[(held.T @ held) > 0].sum() / max(counts.sum(), 1.0)
    return shares


@compiled
def _count_rows(
    served_by: NDArray[np.int16],
    homes: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
    rows: NDArray[np.int64],
    node_rows: NDArray[np.int64],
) -> None:
    """Add to `rows` [R, R] and `node_rows` [N, N] one for each other rank, and node, that a token's experts are on."""
    num_tokens, top_k = served_by.shape
    seen_rank = np.full(len(node_of_rank), -1, dtype=np.int64)
    seen_node = np.full(len(node_rows), -1, dtype=np.int64)
    for token in range(num_tokens):
        home = homes[token]
        seen_rank[home] = token
        seen_node[node_of_rank[home]] = token
        for k in range(top_k):
            rank = served_by[token, k]
            node = node_of_rank[rank]
            if seen_rank[rank] != token:
                seen_rank[rank] = token
                rows[home, rank] += 1
            if seen_node[node] != token:
                seen_node[node] = token
                node_rows[node_of_rank[home], node] += 1
