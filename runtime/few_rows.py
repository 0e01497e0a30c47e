"""Bring rows to their processes together with their number where they are few: one exchange in place of two.

On Gloo alone: its TCP transport lets a message be shorter than the place that waits for it, so that a message brings as
many rows as its header says, in exactly their bytes. Other backends, and libuv under Gloo on macOS, want lengths told
before. Shape suffixes: N rows, W processes, B bytes.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist

from specmoe.kernels.assign.assignment import Assignment
from specmoe.runtime.announcement import HEADER_BYTES, NUM_VALUES, Announcement, announcement_of
from specmoe.runtime.errors import others_answer
from specmoe.runtime.workers import Workers

# The most bytes of rows to a process that come with their number. More take their time whatever is told before.
MOST_BYTES = 1 << 18


def can_send_few_rows(workers: Workers) -> bool:
    """Whether messages may be shorter than the place that waits for them; not before there is a process group."""
    if workers.world_size == 1 or workers.device.type != "cpu" or sys.platform != "linux":
        return False
    return dist.is_initialized() and "cpu:gloo" in dist.get_backend_config()


class FewRows:
    """Messages of a header and at most `MOST_BYTES` of rows between all processes; one for all layers of a model."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        # Usable in every mode, also of a model that is loaded in inference mode.
        with torch.inference_mode(mode=False):
            self._heard = torch.empty((workers.world_size - 1, HEADER_BYTES + MOST_BYTES), dtype=torch.uint8)
        self._heard_bytes = [self._heard.shape[1]] * workers.world_size
        self._heard_bytes[workers.process] = 0

    def announce(self, ways: Sequence[Assignment], row: int, *, active: bool) -> Announcement:
        """As `Exchange.announce`: headers alone."""
        numbers = self._numbers(ways, row, active=active, with_rows=False)
        return announcement_of(numbers, self._exchange(numbers, None, row), len(ways), self._workers)

    def deliver(
        self, packed: torch.Tensor, way: Assignment, row: int, *, active: bool
    ) -> tuple[Announcement, torch.Tensor]:
        """What all were told, and uint8 [N, B], the rows for this process; packed: uint8 [N, B], the way's rows.

        Rows of a process that has many for any other one follow in an exchange of their own.
        """
        process = self._workers.process
        starts = way.row_offsets[:: self._workers.ranks_per_process].tolist()
        parts = [packed[start:end] for start, end in pairwise(starts)]
        own, parts[process] = parts[process], packed[:0]
        with_rows = max(map(len, parts)) * packed.shape[1] <= MOST_BYTES
        numbers = self._numbers([way], row, active=active, with_rows=with_rows)
        told = announcement_of(numbers, self._exchange(numbers, parts if with_rows else None, row), 1, self._workers)
        received = self._with_numbers(told, packed.shape[1])
        if not all(told.with_rows):
            self._add_late(received, parts, told, row)
        received[process] = own
        return told, torch.cat(received)

    def _numbers(self, ways: Sequence[Assignment], row: int, *, active: bool, with_rows: bool) -> list[list[int]]:
        """As `numbers_to_tell`, without the many small steps that a device asks for."""
        status = [row, int(active), ways[0].pair_slot.shape[0], int(with_rows)]
        numbers = [status.copy() for _ in range(self._workers.world_size)]
        for way in ways:
            for offsets in (way.row_offsets, way.pair_offsets):
                starts = offsets[:: self._workers.ranks_per_process].tolist()
                for told, start, end in zip(numbers, starts[:-1], starts[1:], strict=True):
                    told.append(end - start)
        return [told + [0] * (NUM_VALUES - len(told)) for told in numbers]

    def _exchange(self, numbers: list[list[int]], parts: Sequence[torch.Tensor] | None, row: int) -> list[list[int]]:
        """The numbers of every process, its own among them; what came with them stays in `_heard`."""
        headers = torch.tensor(numbers).view(torch.uint8)
        messages, num_bytes = [], [0] * self._workers.world_size
        for other, header in enumerate(headers):
            if other != self._workers.process:
                message = [header] if parts is None else [header, parts[other].reshape(-1)]
                messages += message
                num_bytes[other] = sum(map(len, message))
        with others_answer(self._workers.process, f"MoE layer {row}"):
            dist.all_to_all_single(self._heard.view(-1), torch.cat(messages), self._heard_bytes, num_bytes)
        heard = self._heard[:, :HEADER_BYTES].contiguous().view(torch.int64).tolist()
        heard.insert(self._workers.process, numbers[self._workers.process])
        return heard

    def _with_numbers(self, told: Announcement, row_bytes: int) -> list[torch.Tensor]:
        """By process, uint8 [n, B]: the rows that came with its numbers."""
        received = []
        for other, (count, came) in enumerate(zip(told.ways[0].received_rows, told.with_rows, strict=True)):
            if other == self._workers.process or not came:
                received.append(self._heard.new_empty((0, row_bytes)))
            else:
                rows = self._heard[other - (other > self._workers.process), HEADER_BYTES:]
                received.append(rows[: count * row_bytes].view(count, row_bytes))
        return received

    def _add_late(
        self, received: list[torch.Tensor], parts: Sequence[torch.Tensor], told: Announcement, row: int
    ) -> None:
        """Put the rows of processes that have many into `received`, in an exchange whose sizes all know."""
        process = self._workers.process
        counts = [0 if came else count for came, count in zip(told.with_rows, told.ways[0].received_rows, strict=True)]
        counts[process] = 0
        sent = [part[:0] for part in parts] if told.with_rows[process] else parts
        late = parts[0].new_empty((sum(counts), parts[0].shape[1]))
        with others_answer(process, f"MoE layer {row}"):
            dist.all_to_all_single(late, torch.cat(list(sent)), counts, list(map(len, sent)))
        for other, rows in enumerate(torch.split(late, counts)):
            if counts[other] > 0:
                received[other] = rows
