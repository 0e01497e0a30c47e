"""The bytes that serving a workload under a plan must put on the wire, from the plan and the routing alone.

    rows      = rows between ranks x (packed row out + hidden state back); without relays the remote copies
    numbers   = what processes tell each other of each exchange: before it, or with the rows where these are few
    shuffle   = tp: 2 (W - 1) T H elements a layer, reduce-scatter and all-gather; by node 2 (N - 1) T H of them cross
    frames    = Ethernet, IP and TCP headers of full segments; and for each message one more segment, Gloo's preamble,
                and a notice from each side that it is ready

W processes (one rank each) on N nodes, T tokens, H hidden size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from workload import Workload

from specmoe.placement.homes import homes_of
from specmoe.placement.metrics import count_traffic
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.request_router import route_requests
from specmoe.placement.serving import serve_layer
from specmoe.runtime.announcement import HEADER_BYTES as NUMBERS_BYTES
from specmoe.runtime.few_rows import MOST_BYTES
from specmoe.runtime.node_routes import NodeRoutes
from specmoe.runtime.packing import row_bytes
from specmoe.runtime.process_nodes import nodes_with_slow_links
from specmoe.runtime.relays import FEWEST_TOKENS, Relays
from specmoe.runtime.shuffle import Shuffle
from specmoe.runtime.token_seats import slice_sizes
from specmoe.runtime.workers import Workers

# What Gloo puts before a message, and the smallest frame that carries it: 14 + 20 + 32 bytes of headers.
HEADER_BYTES = 66
PREAMBLE_BYTES = 48
BATCH_BYTES = 4 * 8


@dataclass(frozen=True, kw_only=True)
class Wire:
    """What a model's rows weigh, and the links' largest packet."""

    hidden_size: int
    top_k: int
    dtype: torch.dtype
    mtu: int

    @property
    def row_bytes(self) -> int:
        """A packed row, on its way out."""
        return row_bytes(self.hidden_size, self.top_k, self.dtype)

    @property
    def copy_bytes(self) -> int:
        """One remote copy: a packed row out and a hidden state back."""
        return self.row_bytes + self.state_bytes

    @property
    def state_bytes(self) -> int:
        return self.hidden_size * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class RowsOut:
    """One exchange; rows: int64 [R, R], from rank to rank, those that stay on the diagonal. told_before: whether their
    numbers are told in an exchange of its own however few they are."""

    rows: NDArray[np.int64]
    told_before: bool

    def num_messages(self, wire: Wire) -> int:
        """From one process to another: numbers, rows out and rows back, or two where numbers and rows go together."""
        most_rows = (self.rows - np.diag(np.diag(self.rows))).max()
        return 3 if self.told_before or most_rows * wire.row_bytes > MOST_BYTES else 2


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """evaluate_copies: remote copies per token as `evaluate` counts them for these requests; internode_copies: to other
    nodes of the network, whether the plan knows of them or not. Of wire_bytes, which all processes send, node_bytes
    cross from node to node; rows_bytes are rows between ranks alone.

    rows: int64 [R, R], from rank to rank over all passes and layers, those that stay on the diagonal.
    """

    evaluate_copies: float
    internode_copies: float
    rows: NDArray[np.int64]
    rows_bytes: int
    wire_bytes: int
    node_bytes: int


def predict(plan: PlacementPlan, workload: Workload, wire: Wire, node_of_rank: NDArray[np.int32]) -> Prediction:
    """The bytes of all processes together, one rank each; node_of_rank: int32 [R], as the network is."""
    sample = workload.sample(slice(None))
    homes = homes_of(plan, sample)
    traffic = [
        count_traffic(serve_layer(plan, layer, sample.expert_ids[:, layer], home), home, node_of_rank)
        for layer, home in enumerate(homes)
    ]
    exchanges = exchanges_of(plan, workload)
    rows = np.sum([exchange.rows for exchange in exchanges], axis=0)
    told_bytes = len(exchanges) * NUMBERS_BYTES + num_batches(plan, workload) * BATCH_BYTES
    payload = rows * wire.copy_bytes + shuffled_rows(plan, workload, wire) * wire.state_bytes + told_bytes
    messages = sum(exchange.num_messages(wire) for exchange in exchanges)
    messages += num_batches(plan, workload) + num_shuffles(plan, workload, wire)
    is_remote = ~np.eye(plan.ep_size, dtype=np.bool_)
    remote, between = (
        int(payload[ways].sum()) + frame_bytes(int(payload[ways].sum()), int(ways.sum()) * messages, wire.mtu)
        for ways in (is_remote, node_of_rank[:, None] != node_of_rank)
    )
    return Prediction(
        evaluate_copies=float(np.mean([layer.remote_copies for layer in traffic])) / sample.num_tokens,
        internode_copies=float(np.mean([layer.internode_copies for layer in traffic])) / sample.num_tokens,
        rows=rows,
        rows_bytes=int(rows[is_remote].sum()) * wire.copy_bytes,
        wire_bytes=remote,
        node_bytes=between,
    )


def exchanges_of(plan: PlacementPlan, workload: Workload) -> list[RowsOut]:
    """Those of all passes and layers: one a layer, and two by way of relays."""
    exchanges = []
    ranks = _request_ranks(plan, workload)
    # With relays a pass's first layer decides by which way it goes, and tells of both.
    has_relays = relays_of(plan) is not None
    for columns in workload.passes():
        sample = workload.sample(columns)
        relays = _relays_in(plan, workload, columns)
        if ranks is None:
            homes = homes_of(plan, sample)
        else:
            of_token = np.repeat(ranks, columns.stop - columns.start).astype(np.int32)
            homes = np.broadcast_to(of_token, (plan.num_layers, len(of_token)))
        for layer in range(plan.num_layers):
            served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes[layer])
            goes = np.zeros((len(served_by), plan.ep_size), dtype=np.bool_)
            np.put_along_axis(goes, served_by.astype(np.int64), True, axis=1)
            found = _rows(goes, homes[layer], relays, plan.topology.node_of_rank)
            told_before = has_relays and layer == 0
            exchanges += [RowsOut(rows=rows, told_before=told_before and n == 0) for n, rows in enumerate(found)]
    return exchanges


def _relays_in(plan: PlacementPlan, workload: Workload, columns: slice) -> NDArray[np.int32] | None:
    """The relays by which the pass of these columns goes, as `relays_of`."""
    return relays_of(plan) if _num_tokens(workload, columns) >= FEWEST_TOKENS else None


def relays_of(plan: PlacementPlan) -> NDArray[np.int32] | None:
    """int32 [R, nodes]: the rank to which a rank sends what a node serves; None where rows go straight."""
    relays = []
    for rank in range(plan.ep_size):
        workers = Workers(ep_size=plan.ep_size, process=rank, world_size=plan.ep_size, device=torch.device("cpu"))
        found = Relays.of_plan(plan, workers)
        if found is None:
            return None
        relays.append(found.relay_of_node.numpy())
    return np.stack(relays)


def _rows(
    goes: NDArray[np.bool_],
    home: NDArray[np.int32],
    relays: NDArray[np.int32] | None,
    node_of_rank: NDArray[np.int32],
) -> NDArray[np.int64]:
    """int64 [exchanges, R, R] of one layer in one pass; goes: bool [T, R], the ranks that serve each token; home:
    int32 [T]."""
    num_ranks = goes.shape[1]
    rows = np.zeros((1 if relays is None else 2, num_ranks, num_ranks), dtype=np.int64)
    for rank in range(num_ranks):
        own = goes[home == rank]
        if relays is None:
            rows[0, rank] = own.sum(axis=0)
            continue
        for node, relay in enumerate(relays[rank]):
            of_node = own * (node_of_rank == node)
            rows[0, rank, relay] += of_node.any(axis=1).sum()
            rows[1, relay] += of_node.sum(axis=0)
    return rows


def _request_ranks(plan: PlacementPlan, workload: Workload) -> NDArray[np.int64] | None:
    """int64 [N] under `dp`, the rank that each request is sent to when its prompt is there."""
    if not _is_dp(plan):
        return None
    return np.asarray(route_requests(plan, workload.tokens[:, : workload.prompt_tokens].tolist()))


def shuffled_rows(plan: PlacementPlan, workload: Workload, wire: Wire) -> NDArray[np.int64]:
    """int64 [R, R]: what `tp` attention moves from process to process beside the rows, over all passes and layers."""
    total = np.zeros((plan.ep_size, plan.ep_size), dtype=np.int64)
    if _is_dp(plan):
        return total
    for columns in workload.passes():
        nodes = _nodes_of_shuffle(plan, _num_tokens(workload, columns) * wire.state_bytes)
        sizes = slice_sizes(_num_tokens(workload, columns), plan.ep_size)
        scattered = np.broadcast_to(sizes, total.shape) if nodes is None else _scattered_by_node(sizes, nodes)
        # What is gathered goes the same ways back.
        total += (scattered + scattered.T) * workload.num_layers
    return total


def _scattered_by_node(sizes: list[int], nodes: list[int]) -> NDArray[np.int64]:
    """int64 [R, R]: the rows of one reduce-scatter from process to process."""
    routes, total = NodeRoutes(sizes, nodes), np.zeros((len(sizes), len(sizes)), dtype=np.int64)
    for process in range(len(sizes)):
        for other in range(len(sizes)):
            is_near = nodes[process] == nodes[other]
            near, far = sizes[other] + len(routes.relayed(other)), len(routes.crossing(other, process))
            total[process, other] = near if is_near else far
    return total


def _nodes_of_shuffle(plan: PlacementPlan, num_bytes: int) -> list[int] | None:
    """The node of each process where a batch of so many bytes is shuffled by node."""
    workers = Workers(ep_size=plan.ep_size, process=0, world_size=plan.ep_size, device=torch.device("cpu"))
    nodes = nodes_with_slow_links(plan, workers)
    return nodes if Shuffle(workers, nodes).is_by_node(num_bytes) else None


def num_shuffles(plan: PlacementPlan, workload: Workload, wire: Wire) -> int:
    """Messages from one process to another: two a layer and pass under `tp`, or four where it is shuffled by node."""
    if _is_dp(plan):
        return 0
    sizes = [_num_tokens(workload, columns) * wire.state_bytes for columns in workload.passes()]
    return sum(2 if _nodes_of_shuffle(plan, size) is None else 4 for size in sizes) * workload.num_layers


def _num_tokens(workload: Workload, columns: slice) -> int:
    return workload.num_requests * (columns.stop - columns.start)


def num_batches(plan: PlacementPlan, workload: Workload) -> int:
    """Passes in which processes tell each other which batch they run: under `tp`."""
    return 0 if _is_dp(plan) else workload.new_tokens


def frame_bytes(payload_bytes: int, messages: int, mtu: int) -> int:
    """Headers around `payload_bytes` in that many messages, with an acknowledgement for each two segments of data."""
    of_segment = mtu - (HEADER_BYTES - 14)
    segments = payload_bytes / of_segment + messages
    notices = 2 * (HEADER_BYTES + PREAMBLE_BYTES)
    return int(segments * HEADER_BYTES * 1.5 + messages * (PREAMBLE_BYTES + notices))


def _is_dp(plan: PlacementPlan) -> bool:
    return plan.attention == "dp"
