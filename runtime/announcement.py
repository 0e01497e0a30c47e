"""What processes tell each other of an exchange of rows: eight numbers from each to each.

Shape suffixes: W processes, V ranks per process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from specmoe.kernels.assign.assignment import Assignment
from specmoe.runtime.errors import ExchangeError
from specmoe.runtime.workers import Workers

# The plan's row, whether the sender has work, its tokens, whether its rows come with the numbers; then of each way the
# rows and the pairs for the receiver.
STATUS_VALUES = 4
MOST_WAYS = 2
NUM_VALUES = STATUS_VALUES + 2 * MOST_WAYS
HEADER_BYTES = NUM_VALUES * 8


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one layer sends and receives, by process; `pairs` is the number of (token, expert) pairs received."""

    sent_rows: list[int]
    received_rows: list[int]
    pairs: int


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What all processes told each other: the traffic of each way that was offered, and how many tokens all have.

    `anyone_active` is False when no process has work of its own: all of them are in `take_part`. with_rows: of each
    process, whether its rows came with its numbers.
    """

    ways: list[Traffic]
    num_tokens: int
    anyone_active: bool
    with_rows: list[bool]


def numbers_to_tell(
    ways: Sequence[Assignment], workers: Workers, row: int, *, active: bool, with_rows: bool
) -> torch.Tensor:
    """int64 [W, NUM_VALUES], to each process; ways: one or two assignments of the same tokens."""
    offsets = torch.stack([torch.stack([way.row_offsets, way.pair_offsets]) for way in ways])
    of_process = offsets[:, :, :: workers.ranks_per_process].diff().view(2 * len(ways), workers.world_size).T
    numbers = torch.zeros((workers.world_size, NUM_VALUES), dtype=torch.int64, device=offsets.device)
    status = [row, int(active), ways[0].pair_slot.shape[0], int(with_rows)]
    numbers[:, :STATUS_VALUES] = torch.tensor(status, device=offsets.device)
    numbers[:, STATUS_VALUES : STATUS_VALUES + 2 * len(ways)] = of_process
    return numbers


def announcement_of(
    sent: Sequence[Sequence[int]], heard: Sequence[Sequence[int]], num_ways: int, workers: Workers
) -> Announcement:
    """Of the numbers to and from each process; raises `ExchangeError` when a process is at another layer."""
    require_same_layer(enumerate(theirs[0] for theirs in heard), workers, sent[0][0])
    return Announcement(
        ways=[_traffic(sent, heard, way) for way in range(num_ways)],
        num_tokens=sum(theirs[2] for theirs in heard),
        anyone_active=any(theirs[1] for theirs in heard),
        with_rows=[bool(theirs[3]) for theirs in heard],
    )


def require_same_layer(rows: Iterable[tuple[int, int]], workers: Workers, row: int) -> None:
    """Raise `ExchangeError` unless all processes are at the plan's row `row`; rows: (process, its row)."""
    for process, their_row in rows:
        if their_row != row:
            raise ExchangeError(
                f"process {process} is at MoE layer {their_row} while process {workers.process} is at {row}; "
                "every process must run the same number of forward passes (see lock_step)"
            )


def _traffic(sent: Sequence[Sequence[int]], heard: Sequence[Sequence[int]], way: int) -> Traffic:
    """Of the messages to and from each process, what concerns one way."""
    rows = STATUS_VALUES + 2 * way
    return Traffic(
        sent_rows=[ours[rows] for ours in sent],
        received_rows=[theirs[rows] for theirs in heard],
        pairs=sum(theirs[rows + 1] for theirs in heard),
    )
