"""Choose the number format of matrix products by measuring: bfloat16 is nine times faster on some processors and a
hundred times slower on others."""

import time

import torch

WORTHWHILE_SPEEDUP = 1.5


def fastest_matmul_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies matrices much faster in it, else float32."""
    plain, half = _seconds(torch.float32), _seconds(torch.bfloat16)
    return torch.bfloat16 if plain > WORTHWHILE_SPEEDUP * half else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of several runs, so that a busy machine does not decide."""
    left, right = torch.ones(512, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    runs = []
    for _ in range(6):
        start = time.perf_counter()
        torch.matmul(left, right)
        runs.append(time.perf_counter() - start)
    return min(runs)
