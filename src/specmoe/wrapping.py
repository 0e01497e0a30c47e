"""Arithmetic on whole numbers of 64 bits that wraps around, inside compiled functions.

numba tells the compiler that signed numbers never overflow; where they are patterns of bits they do.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba.extending import intrinsic

_Operation = Callable[[np.int64, np.int64 | int], np.int64]


def _operation(name: str) -> _Operation:
    def typed(_typing: Any, first: Any, _second: Any) -> tuple[Any, Callable[..., Any]]:
        def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments)

        return first(first, first), code

    return cast(_Operation, intrinsic(typed))


wrapping_sub, wrapping_mul = _operation("sub"), _operation("mul")
