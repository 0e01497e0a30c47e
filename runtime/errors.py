"""The error of processes that do not find together."""

from collections.abc import Iterator
from contextlib import contextmanager

from specmoe.errors import SpecmoeError
from specmoe.runtime.roll_call import silent_processes


class ExchangeError(SpecmoeError):
    """The processes are out of step, or one of them is gone."""

    one_process_only = True


@contextmanager
def others_answer(process: int, place: str) -> Iterator[None]:
    """Around a collective of `process`: a failed one is raised as `ExchangeError` that names the silent process."""
    try:
        yield
    except RuntimeError as error:
        silent = " and ".join(str(number) for number in silent_processes())
        who = f"process {silent} does not answer any more" if silent else "another process ended or failed"
        raise ExchangeError(f"process {process} had to stop in {place}: {who}; see its own message") from error
