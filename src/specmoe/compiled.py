"""Compile a function to machine code with numba, keeping the result on disk where a folder for it can be written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from numba import njit
from numba.core.event import Event, Listener, install_listener

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """`function` compiled at its first call (about a second), without the interpreter lock.

    The machine code is kept beside the source, or in the user's cache folder; where neither can be written, as in a
    read-only image, it is compiled again in every process.
    """
    try:
        return cast(Function, njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba found no folder that it can write
        return cast(Function, njit(nogil=True)(function))


@contextmanager
def on_first_compilation(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` once if, within the block, anything has to be compiled rather than read from disk."""
    with install_listener("numba:compile", _First(tell)):
        yield


class _First(Listener):
    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell: Callable[[], None] | None = tell

    def on_start(self, event: Event) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    def on_end(self, event: Event) -> None:
        pass
