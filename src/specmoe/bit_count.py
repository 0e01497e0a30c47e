"""The number of set bits, one machine instruction inside compiled functions."""

from collections.abc import Callable
from typing import Any, cast

from numba.extending import intrinsic


def _count(_typing: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    def code(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return value(value), code


bit_count = cast(Callable[[Any], int], intrinsic(_count))
