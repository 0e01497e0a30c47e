"""The error of processes that do not find together."""

from collections.abc import Iterator
from contextlib import contextmanager

from specmoe.errors import SpecmoeError


class ExchangeError(SpecmoeError):
    """The processes are out of step, or one of them is gone."""

    one_process_only = True


@contextmanager
def others_answer(process: int, place: str) -> Iterator[None]:
    """Around a collective of `process`: a failed one is raised as `ExchangeError` that names the `place`."""
    try:
        yield
    except RuntimeError as error:
        raise ExchangeError(
            f"process {process} lost the others in {place}: one of them ended or hung; its own message says why"
        ) from error
