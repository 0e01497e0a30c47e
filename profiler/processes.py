"""The processes that profile one corpus together, as torchrun starts them: how they meet, hand over and end as one.

They talk on the CPU (gloo), whatever the model runs on: all that they exchange are counts, once, at the end.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from specmoe.artifact import Array
from specmoe.errors import SpecmoeError

# A process may wait for others through their last batch, and not for ever.
TIMEOUT = timedelta(hours=1)
BLOCK_BYTES = 2**26
_SPOKEN = "specmoe/profile/has-said-why"


class SaidElsewhereError(SpecmoeError):
    """This process ends because another one failed, which says why."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process's `number` among `count`, and the group that they talk in, None for one process alone.

    meeting: a number that all of them have in common, and no other meeting of theirs.
    """

    number: int = 0
    count: int = 1
    group: Any = None
    meeting: int = 0

    @property
    def local_number(self) -> int:
        """This process's number on its machine."""
        return int(os.environ.get("LOCAL_RANK", "0")) if self.count > 1 else 0

    def gather(self, value: int) -> list[int]:
        """Every process's `value`, by process; collective."""
        if self.count == 1:
            return [value]
        values = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with _others_answering():
            dist.all_gather(values, torch.tensor([value]), group=self.group)
        return [int(item) for item in values]

    def send(self, arrays: Mapping[str, Array], to: int) -> None:
        """Hand `arrays` to process `to`, which must `receive` them."""
        with _others_answering():
            dist.send_object_list([_layout(arrays)], dst=to, group=self.group)
            for name in sorted(arrays):
                for block in _blocks(np.require(arrays[name], requirements=["C", "W"])):
                    dist.send(block, dst=to, group=self.group)

    def receive(self, sender: int) -> dict[str, Array]:
        """The arrays that `sender` sends."""
        layouts: list[Any] = [None]
        arrays = {}
        with _others_answering():
            dist.recv_object_list(layouts, src=sender, group=self.group)
            for name, dtype, shape in layouts[0]:
                arrays[name] = np.empty(shape, dtype=dtype)
                for block in _blocks(arrays[name]):
                    dist.recv(block, src=sender, group=self.group)
        return arrays


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """All processes of the run, met, or this one alone; on an error in one of them all end.

    The one that says why raises its own error, all others `SaidElsewhereError`.
    """
    if not _has_others():
        yield Processes()
        return
    starts = not dist.is_initialized()
    if starts:
        with _others_answering():
            dist.init_process_group("gloo", timeout=TIMEOUT)
    processes = _meet(dist.group.WORLD if starts else None)
    # Not before: while a process waits inside torch for others to join, a signal must end it at once.
    with _one_voice(processes), _ended_by_signal():
        yield processes
    if starts:
        dist.destroy_process_group()


def _has_others() -> bool:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size() > 1
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _meet(group: Any) -> Processes:
    """All processes, connected: one that fails at once would break the others' connecting."""
    with _others_answering():
        group = group or dist.new_group(backend="gloo", timeout=TIMEOUT)
    processes = Processes(number=dist.get_rank(), count=dist.get_world_size(), group=group)
    return replace(processes, meeting=processes.gather(time.time_ns())[0])


@contextmanager
def _others_answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # a process that was killed says nothing; its connections end
        raise _lost() from error


@contextmanager
def _one_voice(processes: Processes) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:  # reaches all of them
        if processes.number:
            raise SaidElsewhereError("interrupted") from None
        raise
    except SpecmoeError as error:
        if not _may_speak(processes.meeting):
            raise SaidElsewhereError("another process of this run failed; see its message") from error
        raise


def _lost() -> SpecmoeError:
    return SpecmoeError("another process of this run was ended (killed, or out of memory); no profile was written")


def _may_speak(meeting: int) -> bool:
    """Whether this process is the first of all that fails; it says so in the store that the processes met through."""
    try:
        # The group's own store is the one channel that is left; torch has no public name for it.
        return int(distributed_c10d._get_default_store().add(f"{_SPOKEN}/{meeting}", 1)) == 1
    except (RuntimeError, ValueError):  # the launcher is gone too
        return True


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Turn SIGTERM, with which a launcher ends the other processes when one is gone, into an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _lost()

    usual = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def _layout(arrays: Mapping[str, Array]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, arrays[name].dtype.str, arrays[name].shape) for name in sorted(arrays)]


def _blocks(array: Array) -> Iterator[torch.Tensor]:
    """The bytes of a contiguous `array` in parts of a bounded size, without a copy."""
    flat = torch.from_numpy(array.reshape(-1).view(np.uint8))
    for start in range(0, len(flat), BLOCK_BYTES):
        yield flat[start : start + BLOCK_BYTES]
