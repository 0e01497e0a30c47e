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
        silent = silent_processes()
        who = f"{_named(silent)} any more" if silent else "another process ended or failed"
        raise ExchangeError(f"process {process} had to stop in {place}: {who}; see its own message") from error


def _named(silent: list[int]) -> str:
    """Some processes, and that they do not answer: those that waited for one that ended may have ended too."""
    if len(silent) == 1:
        return f"process {silent[0]} does not answer"
    return f"processes {', '.join(map(str, silent[:-1]))} and {silent[-1]} do not answer"
