"""Check a tensor or a description entry that came from a file before it is believed."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from specmoe.artifact import Array
from specmoe.errors import ArtifactError

Value = TypeVar("Value")


def check_tensor(name: str, array: Array, dtypes: Sequence[type[np.generic]], shape: tuple[int, ...]) -> None:
    """Raise `ArtifactError` unless `array` has one of `dtypes` and exactly `shape` (-1 matches any size)."""
    if array.dtype not in [np.dtype(dtype) for dtype in dtypes]:
        expected = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise ArtifactError(f"tensor {name} is {array.dtype.name}, {expected} was expected")
    fits = array.ndim == len(shape) and all(want in (-1, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        raise ArtifactError(f"tensor {name} has shape {list(array.shape)}, {list(shape)} was expected")


def check_range(name: str, array: Array, low: float, high: float) -> None:
    """Raise `ArtifactError` unless every value of `array` is finite and lies in `low <= value < high`."""
    if array.size == 0:
        return
    smallest, largest = array.min().item(), array.max().item()  # a float16 would round `low` and `high`
    if not (smallest >= low and largest < high):
        raise ArtifactError(
            f"tensor {name} has values from {smallest} to {largest}, {low} <= value < {high} was expected"
        )


def entry(description: Mapping[str, Any], key: str, kind: type[Value]) -> Value:
    """The value of `key` in a file's description; raises `ArtifactError` unless it is a `kind`."""
    value = description.get(key)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)  # JSON writers differ on 1 and 1.0
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ArtifactError(f"the description's {key!r} is {value!r}, a value of type {kind.__name__} was expected")
    return value


def optional_entry(description: Mapping[str, Any], key: str, kind: type[Value]) -> Value | None:
    """As `entry`, but None where the key is absent or null."""
    return None if description.get(key) is None else entry(description, key, kind)
