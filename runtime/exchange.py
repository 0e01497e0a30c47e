"""Move rows between the processes of the default group: to the experts' ranks and back.

Shape suffixes: N rows, H hidden size, K pairs per row at most, W processes, V ranks per process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from specmoe.kernels.assign.assignment import Assignment
from specmoe.runtime.errors import ExchangeError, others_answer
from specmoe.runtime.packing import pack_rows, unpack_rows
from specmoe.runtime.workers import Workers


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one layer sends and receives, by process; `pairs` is the number of (token, expert) pairs received."""

    sent_rows: list[int]
    received_rows: list[int]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What all processes told each other: the traffic of each way that was offered, and how many tokens all have.

    `anyone_active` is False when no process has work of its own: all of them are in `take_part`.
    """

    ways: list[Traffic]
    num_tokens: int
    anyone_active: bool


# A message's numbers: the plan's row, whether this process has work, its tokens; then rows and pairs of each way.
STATUS_VALUES = 3
MOST_WAYS = 2


@dataclass(frozen=True, kw_only=True)
class ReceivedRows:
    """hidden: [N, H]; slots: int32 [N, K], the slots that each row is for, then -1; weights: float32 [N, K]."""

    hidden: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor


def require_same_layer(rows: Iterable[tuple[int, int]], workers: Workers, row: int) -> None:
    """Raise `ExchangeError` unless all processes are at the plan's row `row`; rows: (process, its row)."""
    for process, their_row in rows:
        if their_row != row:
            raise ExchangeError(
                f"process {process} is at MoE layer {their_row} while process {workers.process} is at {row}; "
                "every process must run the same number of forward passes (see lock_step)"
            )


class Exchange:
    """All-to-all over the default process group; with one process nothing is sent and nothing is copied."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers

    def announce(self, ways: Sequence[Assignment], row: int, *, active: bool) -> Announcement:
        """Tell every process how many rows and pairs it will get from here in the plan's row `row`, and hear theirs.

        ways: one or two assignments of the same tokens, all of which are told of; as many on every process. The one
        place where the host waits for the device. Raises `ExchangeError` when a process is at another layer.
        """
        counts = torch.stack([torch.stack([way.row_offsets, way.pair_offsets]) for way in ways]).diff().long()
        num_tokens = ways[0].pair_slot.shape[0]
        if self.workers.world_size == 1:
            totals = counts.sum(dim=2).tolist()
            alone = [Traffic(sent_rows=[rows], received_rows=[rows], pairs=pairs) for rows, pairs in totals]
            return Announcement(ways=alone, num_tokens=num_tokens, anyone_active=active)
        W = self.workers.world_size
        message = torch.zeros((W, STATUS_VALUES + 2 * MOST_WAYS), dtype=torch.int64, device=counts.device)
        message[:, :STATUS_VALUES] = torch.tensor([row, int(active), num_tokens], device=counts.device)
        of_process = counts.view(2 * len(ways), W, -1).sum(dim=2).T
        message[:, STATUS_VALUES : STATUS_VALUES + 2 * len(ways)] = of_process
        heard = torch.empty_like(message)
        self._all_to_all(heard, message, None, None, row)
        sent_list, heard_list = torch.stack([message, heard]).tolist()
        require_same_layer(enumerate(theirs[0] for theirs in heard_list), self.workers, row)
        return Announcement(
            ways=[_traffic(sent_list, heard_list, way) for way in range(len(ways))],
            num_tokens=sum(theirs[2] for theirs in heard_list),
            anyone_active=any(theirs[1] for theirs in heard_list),
        )

    def send(
        self, hidden: torch.Tensor, slots: torch.Tensor, weights: torch.Tensor, traffic: Traffic, row: int
    ) -> ReceivedRows:
        """Send each rank its rows; hidden: [N, H], slots: int32 [N, K], weights: float32 [N, K], by rank."""
        if self.workers.world_size == 1:
            return ReceivedRows(hidden=hidden, slots=slots, weights=weights)
        message = pack_rows(hidden, slots, weights)
        heard = message.new_empty((sum(traffic.received_rows), message.shape[1]))
        self._all_to_all(heard, message, traffic.received_rows, traffic.sent_rows, row)
        return ReceivedRows(**unpack_rows(heard, hidden.dtype, hidden.shape[1], slots.shape[1]))

    def send_back(self, partial: torch.Tensor, traffic: Traffic, row: int) -> torch.Tensor:
        """Return each received row's partial sum to its sender; [N received, H] in, [N sent, H] out, same orders."""
        if self.workers.world_size == 1:
            return partial
        heard = partial.new_empty((sum(traffic.sent_rows), partial.shape[1]))
        # As bytes: backends differ in the dtypes that they know.
        self._all_to_all(
            heard.view(torch.uint8), partial.view(torch.uint8), traffic.sent_rows, traffic.received_rows, row
        )
        return heard

    def _all_to_all(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        received_rows: list[int] | None,
        sent_rows: list[int] | None,
        row: int,
    ) -> None:
        with others_answer(self.workers.process, f"MoE layer {row}"):
            dist.all_to_all_single(received, sent, received_rows, sent_rows)


def _traffic(sent: Sequence[Sequence[int]], heard: Sequence[Sequence[int]], way: int) -> Traffic:
    """Of the messages to and from each process, what concerns one way."""
    rows = STATUS_VALUES + 2 * way
    return Traffic(
        sent_rows=[ours[rows] for ours in sent],
        received_rows=[theirs[rows] for theirs in heard],
        pairs=sum(theirs[rows + 1] for theirs in heard),
    )
