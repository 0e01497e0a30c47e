"""Move rows between the processes of the default group: to the experts' ranks and back.

Their numbers are told before, in an exchange of its own, or come with the rows where these are few (`FewRows`).

Shape suffixes: T tokens, N rows, H hidden size, K pairs per row at most, W processes, B bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from specmoe.kernels.assign.assignment import Assignment
from specmoe.kernels.dispatch.dispatch import dispatch
from specmoe.runtime.announcement import Announcement, Traffic, announcement_of, numbers_to_tell
from specmoe.runtime.errors import others_answer
from specmoe.runtime.few_rows import FewRows, can_send_few_rows
from specmoe.runtime.packing import pack_rows, unpack_rows
from specmoe.runtime.workers import Workers


@dataclass(frozen=True, kw_only=True)
class ReceivedRows:
    """hidden: [N, H]; slots: int32 [N, K], the slots that each row is for, then -1; weights: float32 [N, K]."""

    hidden: torch.Tensor
    slots: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """The rows that came to this process: none where no process has work of its own."""

    received: ReceivedRows
    traffic: Traffic
    anyone_active: bool


class Exchange:
    """All-to-all over the default process group; with one process nothing is sent and nothing is copied."""

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._few_rows = FewRows(workers) if can_send_few_rows(workers) else None

    def announce(self, ways: Sequence[Assignment], row: int, *, active: bool) -> Announcement:
        """Tell every process how many rows and pairs it will get from here in the plan's row `row`, and hear theirs.

        ways: one or two assignments of the same tokens, all of which are told of; as many on every process. Raises
        `ExchangeError` when a process is at another layer. Here, or in `deliver`, the host waits for the device.
        """
        if self._few_rows is not None:
            return self._few_rows.announce(ways, row, active=active)
        numbers = numbers_to_tell(ways, self.workers, row, active=active, with_rows=False)
        heard = torch.empty_like(numbers)
        if self.workers.world_size == 1:
            heard = numbers
        else:
            self._all_to_all(heard, numbers, None, None, row)
        sent_list, heard_list = torch.stack([numbers, heard]).tolist()
        return announcement_of(sent_list, heard_list, len(ways), self.workers)

    def deliver(self, hidden: torch.Tensor, way: Assignment, row: int, *, active: bool) -> Delivery:
        """Bring each row of an assignment to its process, telling of it; hidden: [T, H]. Raises as `announce`."""
        if self._few_rows is None:
            return self.send(hidden, way, self.announce([way], row, active=active), 0, row)
        rows = _rows_of(hidden, way, int(way.row_offsets[-1]))
        packed = pack_rows(rows.hidden, rows.slots, rows.weights)
        told, heard = self._few_rows.deliver(packed, way, row, active=active)
        received = ReceivedRows(**unpack_rows(heard, hidden.dtype, hidden.shape[1], way.row_slots.shape[1]))
        return Delivery(received=received, traffic=told.ways[0], anyone_active=told.anyone_active)

    def send(self, hidden: torch.Tensor, way: Assignment, told: Announcement, number: int, row: int) -> Delivery:
        """Bring each row of an assignment to its process: of the way with that number, of all that were told of."""
        traffic = told.ways[number]
        received = rows = _rows_of(hidden, way, sum(traffic.sent_rows))
        # Where no process has work there are no rows either, and nothing is sent.
        if self.workers.world_size > 1 and told.anyone_active:
            message = pack_rows(rows.hidden, rows.slots, rows.weights)
            heard = message.new_empty((sum(traffic.received_rows), message.shape[1]))
            self._all_to_all(heard, message, traffic.received_rows, traffic.sent_rows, row)
            received = ReceivedRows(**unpack_rows(heard, hidden.dtype, hidden.shape[1], rows.slots.shape[1]))
        return Delivery(received=received, traffic=traffic, anyone_active=told.anyone_active)

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


def _rows_of(hidden: torch.Tensor, way: Assignment, num_rows: int) -> ReceivedRows:
    """An assignment's rows, as they are where nothing is sent."""
    rows = dispatch(hidden, way.token_rows, num_rows)
    return ReceivedRows(hidden=rows, slots=way.row_slots[:num_rows], weights=way.row_weights[:num_rows])
