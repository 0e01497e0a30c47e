"""Compile a function to machine code with numba, keeping the result on disk where a folder for it can be written."""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

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
