"""The processes that run one model together: which of the plan's ranks each holds, and what they must agree on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from specmoe.errors import MismatchError, SpecmoeError, UsageError
from specmoe.runtime.errors import others_answer

DEFAULT_TIMEOUT_S = 600.0

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """`world_size` processes, this one being number `process`; each holds `ep_size / world_size` consecutive ranks."""

    ep_size: int
    process: int
    world_size: int
    device: torch.device

    @property
    def ranks_per_process(self) -> int:
        return self.ep_size // self.world_size

    @property
    def own_ranks(self) -> range:
        """The plan's ranks that this process holds."""
        first = self.process * self.ranks_per_process
        return range(first, first + self.ranks_per_process)

    @classmethod
    def of_default_group(cls, ep_size: int, device: torch.device) -> "Workers":
        """The default process group's processes; without a group this process holds all ranks.

        Raises `UsageError` when the number of processes does not divide `ep_size`.
        """
        grouped = dist.is_available() and dist.is_initialized()
        world_size = dist.get_world_size() if grouped else 1
        if ep_size % world_size != 0:
            fitting = [str(n) for n in range(1, ep_size + 1) if ep_size % n == 0]
            raise UsageError(
                f"{world_size} processes cannot share the checkpoint's {ep_size} ranks; "
                f"start {', '.join(fitting[:-1])}{' or ' if fitting[:-1] else ''}{fitting[-1]}"
            )
        return cls(ep_size=ep_size, process=dist.get_rank() if grouped else 0, world_size=world_size, device=device)


def start_default_group(timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Start the default process group when torchrun launched this process and nobody has started it yet.

    A collective that waits longer than `timeout_s` fails: a process that hangs ends all of them.
    """
    if dist.is_available() and not dist.is_initialized() and dist.is_torchelastic_launched():
        dist.init_process_group(timeout=timedelta(seconds=timeout_s))


def default_device() -> torch.device:
    """The accelerator that belongs to this process, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if dist.is_available() and dist.is_initialized():
        return torch.device("cuda", dist.get_node_local_rank(fallback_rank=0) % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


def raise_together(workers_error: SpecmoeError | None) -> None:
    """Raise on every process when one failed, the failing process's own sentence with its number; collective.

    Processes that did not fail would otherwise wait for the others until the group's timeout.
    """
    errors = gather(None if workers_error is None else (str(workers_error), workers_error.exit_code))
    failed = [(process, error) for process, error in enumerate(errors) if error is not None]
    if not failed:
        return
    if workers_error is not None and len({message for _, (message, _) in failed}) == 1:
        raise workers_error
    process, (message, exit_code) = failed[0]
    together = SpecmoeError(f"process {process} of {len(errors)}: {message}")
    together.exit_code = exit_code
    raise together from workers_error


@contextmanager
def failing_together() -> Iterator[None]:
    """Around what each process does by itself: when it fails on one, all raise; collective at its end.

    A `SpecmoeError` is raised as `raise_together` does. Any other exception is a defect and leaves its own process as
    it is, traceback and all, after the others have been told of it.
    """
    try:
        yield
    except SpecmoeError as error:
        raise_together(error)
    # Whatever it is, the others must not wait for this process until the group's timeout.
    except Exception as error:
        gather((f"{type(error).__name__}: {error}", SpecmoeError.exit_code))
        raise
    else:
        raise_together(None)


def require_equal(values: Mapping[str, str]) -> None:
    """Raise `MismatchError` unless all processes pass the same `values`; names the first that differs; collective."""
    everyone = gather(dict(values))
    for process, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs.get(name) != value:
                raise MismatchError(
                    f"process {process} has {name} {theirs.get(name)}, process 0 has {value}; "
                    "all processes must load the same checkpoint in the same way"
                )


def gather(value: Value) -> list[Value]:
    """Every process's `value`, by process; collective. Raises `ExchangeError` when a process does not answer."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    everyone: list[Value | None] = [None] * dist.get_world_size()
    with others_answer(dist.get_rank(), "a meeting of all processes"):
        dist.all_gather_object(everyone, value)
    return everyone  # type: ignore[return-value]
