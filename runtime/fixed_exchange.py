"""Move rows between processes in buffers of fixed size: every shape is known before the routing is.

To each other process go a header and `C` places for rows; a row's place depends on its number alone, so nothing is
counted on the host. A process's own rows stay beside the buffers. Shape suffixes: T tokens, K pairs of a token,
N rows, H hidden size, W processes, V ranks per process, C rows per peer.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.dispatch.dispatch import dispatch
from specmoe.runtime.errors import others_answer
from specmoe.runtime.exchange import ReceivedRows
from specmoe.runtime.packing import pack_rows, unpack_rows
from specmoe.runtime.workers import Workers

# The header's int32 values: the plan's row, whether this process has work, whether it needs the exact way.
STATUS_VALUES = 3


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a layer's rows lie: `(W - 1) * C` places for the other processes in order, then this process's own.

    token_places: int32 [T, K], as `Assignment.token_rows`; row_slots: int32 [places, K]; row_weights: float32 beside
    them. overflow: bool, whether a process has more rows than places.
    """

    token_places: torch.Tensor
    row_slots: torch.Tensor
    row_weights: torch.Tensor
    overflow: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class FixedRows:
    """received: the rows of the other processes, then this one's own. statuses: int32 [W - 1, 3], their headers."""

    received: ReceivedRows
    statuses: torch.Tensor


class FixedExchange:
    """All-to-alls of `rows_per_peer` rows with each other process."""

    def __init__(self, workers: Workers, rows_per_peer: int) -> None:
        self.workers = workers
        self.rows_per_peer = rows_per_peer
        self._num_peers = workers.world_size - 1
        peers = list(range(workers.world_size))
        peers.remove(workers.process)
        # The first place of each process's rows.
        first = [self._num_peers * rows_per_peer] * workers.world_size
        for number, process in enumerate(peers):
            first[process] = number * rows_per_peer
        self._first_place = torch.tensor(first, device=workers.device)
        self._is_peer = torch.tensor([process in peers for process in range(workers.world_size)], device=workers.device)

    def places(self, assignment: Assignment) -> Places:
        """The places of an assignment's rows; those that find none are left out."""
        starts = assignment.row_offsets[:: self.workers.ranks_per_process].long()
        num_rows = assignment.row_slots.shape[0]
        num_places = self._num_peers * self.rows_per_peer + num_rows
        row = torch.arange(num_rows, device=starts.device)
        process = torch.searchsorted(starts[1:], row, right=True).clamp(max=self.workers.world_size - 1)
        place = row - starts[process]
        has_place = (row < starts[-1]) & ((place < self.rows_per_peer) | ~self._is_peer[process])
        # Rows without a place go past the last one and are cut off.
        place = torch.where(has_place, place + self._first_place[process], num_places)
        counts = starts.diff()
        of_token = torch.where(has_place, place, -1).to(torch.int32)
        token_rows = assignment.token_rows
        return Places(
            token_places=torch.where(token_rows >= 0, of_token[token_rows.clamp(min=0).long()], -1).contiguous(),
            row_slots=_put(assignment.row_slots, place, num_places, -1),
            row_weights=_put(assignment.row_weights, place, num_places, 0),
            overflow=((counts > self.rows_per_peer) & self._is_peer).any(),
        )

    def no_places(self, top_k: int) -> Places:
        """Of a process that sends nothing."""
        num_places, device = self._num_peers * self.rows_per_peer, self.workers.device
        return Places(
            token_places=torch.zeros((0, top_k), dtype=torch.int32, device=device),
            row_slots=torch.full((num_places, top_k), -1, dtype=torch.int32, device=device),
            row_weights=torch.zeros((num_places, top_k), device=device),
            overflow=torch.zeros((), dtype=torch.bool, device=device),
        )

    def send(self, hidden: torch.Tensor, places: Places, status: torch.Tensor, row: int) -> FixedRows:
        """Send every other process its places and `status` (int32 [3]); hidden: [T, H]."""
        num_places, top_k = places.row_slots.shape
        rows = dispatch(hidden, places.token_places, num_places)
        split = self._num_peers * self.rows_per_peer
        own = [part[split:] for part in (rows, places.row_slots, places.row_weights)]
        packed = pack_rows(rows[:split], places.row_slots[:split], places.row_weights[:split])
        packed = packed.view(self._num_peers, self.rows_per_peer, -1)
        header = packed.new_zeros((self._num_peers, 1, packed.shape[2]))
        header[:, 0, : STATUS_VALUES * 4] = status.view(torch.uint8)
        heard = self._all_to_all(torch.cat([header, packed], dim=1), self.rows_per_peer + 1, row)
        statuses = heard[:, 0, : STATUS_VALUES * 4].contiguous().view(torch.int32)
        theirs = unpack_rows(heard[:, 1:].reshape(split, -1), hidden.dtype, hidden.shape[1], top_k)
        received = ReceivedRows(
            hidden=torch.cat([theirs["hidden"], own[0]]),
            slots=torch.cat([theirs["slots"], own[1]]),
            weights=torch.cat([theirs["weights"], own[2]]),
        )
        return FixedRows(received=received, statuses=statuses)

    def send_back(self, partial: torch.Tensor, row: int) -> torch.Tensor:
        """Return the partial sums of received rows to their senders, in places; [places, H] in and out."""
        split = self._num_peers * self.rows_per_peer
        sent = partial[:split].view(torch.uint8).reshape(self._num_peers, self.rows_per_peer, -1)
        heard = self._all_to_all(sent, self.rows_per_peer, row).reshape(split, -1).view(partial.dtype)
        return torch.cat([heard.view(split, partial.shape[1]), partial[split:]])

    def _all_to_all(self, sent: torch.Tensor, rows: int, row: int) -> torch.Tensor:
        """uint8 [W - 1, rows, bytes] in and out, by process."""
        splits = [rows] * self.workers.world_size
        splits[self.workers.process] = 0
        flat = sent.reshape(-1, sent.shape[2])
        received = torch.empty_like(flat)
        with others_answer(self.workers.process, f"MoE layer {row}"):
            dist.all_to_all_single(received, flat, splits, splits)
        return received.view(sent.shape)


def _put(values: torch.Tensor, place: torch.Tensor, num_places: int, empty: float) -> torch.Tensor:
    """[num_places, K]: `values[n]` at `place[n]`, `empty` elsewhere; place: int64 [N], num_places for none."""
    out = torch.full((num_places + 1, values.shape[1]), empty, dtype=values.dtype, device=values.device)
    out[place] = values
    return out[:num_places]
