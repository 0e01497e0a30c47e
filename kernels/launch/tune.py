"""Measure which launch shapes move rows fastest on a device, and keep them for all later runs on such a device."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from specmoe.kernels.combine.fused import add_rows
from specmoe.kernels.dispatch.fused import copy_rows
from specmoe.kernels.launch.compiler import median_ms
from specmoe.kernels.launch.shapes import FEW_ROWS, LaunchShape, MoveCase, device_name, keep_shapes

CANDIDATES = tuple(LaunchShape(block=block, warps=warps) for block in (512, 1024, 2048, 4096) for warps in (2, 4, 8))
# A batch of each of the two sizes that are told apart.
TOKENS = (FEW_ROWS // 2, 8 * FEW_ROWS)

Work = Callable[[LaunchShape], object]


def tune(
    hidden_size: int,
    top_k: int,
    dtype: torch.dtype,
    device: torch.device,
    milliseconds: Callable[[Callable[[], object]], float] = median_ms,
) -> Path:
    """Choose the launch shapes of dispatch and combine for rows of `hidden_size` values of `dtype` that go to up to
    `top_k` places; returns the file that keeps them. About 20 seconds, most of them compiling.

    milliseconds: what a call takes on the device.
    """
    found = {}
    for case, work in _cases(hidden_size, top_k, dtype, device):
        found[case.key] = min(CANDIDATES, key=lambda shape, work=work: milliseconds(partial(work, shape)))  # type: ignore[misc]
    return keep_shapes(device_name(device), found)


def _cases(hidden_size: int, top_k: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[MoveCase, Work]]:
    for tokens in TOKENS:
        rows = torch.zeros((tokens, hidden_size), dtype=dtype, device=device)
        pairs = torch.zeros((tokens * top_k, hidden_size), dtype=dtype, device=device)
        generator = torch.Generator(device).manual_seed(0)
        places = torch.randperm(tokens * top_k, generator=generator, device=device).view(tokens, top_k)
        positions = places.to(torch.int32)
        weights = torch.ones((tokens, top_k), device=device)
        size = {"row_bytes": hidden_size * dtype.itemsize, "choices": top_k, "rows": tokens}
        yield (
            MoveCase(operation="dispatch", **size),
            partial(copy_rows, positions, rows, pairs, None, None),
        )
        yield MoveCase(operation="combine", **size), partial(add_rows, pairs, positions, weights, rows)
