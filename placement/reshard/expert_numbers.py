"""Tensors whose values are expert numbers: routing by a table of token ids, which renumbering must write anew.

DeepSeek-V4's first layers have one, `tid2eid` [V, K]. It is the only kind of tensor that is not moved byte by byte.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from specmoe.checkpoint import Checkpoint
from specmoe.errors import CheckpointError

INTEGER_DTYPES = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1"}


def read_expert_numbers(checkpoint: Checkpoint, name: str, num_experts: int) -> npt.NDArray[np.integer]:
    """The values of tensor `name`, flat; raises `CheckpointError` for one that is no expert."""
    entry = checkpoint.tensors[name]
    numbers = np.fromfile(
        entry.file, dtype=INTEGER_DTYPES[entry.dtype], count=int(np.prod(entry.shape)), offset=entry.begin
    )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < num_experts:
        raise CheckpointError(
            f"{checkpoint.path}: {name} names experts {numbers.min()} to {numbers.max()}, 0 to {num_experts - 1} were "
            "expected"
        )
    return numbers


def renumbered(checkpoint: Checkpoint, name: str, old_of_new: Sequence[int]) -> bytes:
    """The bytes of tensor `name` with every old expert replaced by the new one that holds it."""
    numbers = read_expert_numbers(checkpoint, name, len(old_of_new))
    new_of_old = np.argsort(np.asarray(old_of_new)).astype(numbers.dtype)
    content: bytes = new_of_old[numbers].tobytes()
    return content
