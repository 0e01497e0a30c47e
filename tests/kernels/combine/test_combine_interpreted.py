"""Combine's kernel against the reference, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.combine.fused import combine_fused
from specmoe.kernels.combine.reference import combine_reference


def _expected(rows, positions, weights, device):
    """The reference's; but Triton's interpreter cuts bfloat16 off where GPUs and PyTorch round to nearest."""
    if rows.dtype != torch.bfloat16 or device.type == "cuda":
        return combine_reference(rows, positions, weights)
    bits = combine_reference(rows.float(), positions, weights).view(torch.int32)
    return (bits & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def _assert_equal_to_reference(rows, positions, weights, device):
    on_device = [None if tensor is None else tensor.to(device) for tensor in (rows, positions, weights)]
    out = combine_fused(*on_device)
    assert out.dtype == rows.dtype
    assert torch.equal(out.cpu(), _expected(rows, positions, weights, device))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(0, 9),
    C=st.integers(1, 12),
    N=st.integers(0, 20),
    width=st.integers(1, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    weighted=st.booleans(),
)
def test_sums_are_those_of_the_reference(kernel_device, poisoned, seed, T, C, N, width, dtype, weighted):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((N, width), generator=generator).to(dtype)
    positions = torch.randint(-1, max(N, 1), (T, C), generator=generator).to(torch.int32)
    positions = positions if N else positions.fill_(-1)
    weights = torch.rand((T, C), generator=generator) if weighted else None
    with poisoned():
        _assert_equal_to_reference(rows, positions, weights, kernel_device)


@pytest.mark.parametrize("width", [2880, 7169])
def test_rows_wider_than_a_block_are_whole(kernel_device, width):
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn((6, width), generator=generator).to(torch.bfloat16)
    positions = torch.randint(-1, 6, (3, 4), generator=generator).to(torch.int32)
    _assert_equal_to_reference(rows, positions, torch.rand((3, 4), generator=generator), kernel_device)


def test_what_nobody_asks_for_may_hold_nan(kernel_device):
    rows = torch.tensor([[float("nan")], [2.0]], device=kernel_device)
    positions = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int32, device=kernel_device)
    weights = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]], device=kernel_device)
    assert combine_fused(rows, positions, weights).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("position", [1, 2**31 - 1, -2, -(2**31)])
def test_a_row_that_does_not_exist_adds_nothing(kernel_device, position):
    positions = torch.tensor([[position, 0]], dtype=torch.int32, device=kernel_device)
    # The middle of a buffer, so that what is read beside it shows.
    buffer = torch.ones((5, 4), device=kernel_device)
    assert combine_fused(buffer[2:3], positions, None).tolist() == [[1.0] * 4]


def test_the_operator_tells_shapes_without_running(kernel_device):
    rows = torch.ones((4, 6), dtype=torch.bfloat16, device=kernel_device)
    positions = torch.tensor([[0, 3], [-1, -1]], dtype=torch.int32, device=kernel_device)
    torch.library.opcheck(combine_fused, (rows, positions, None))
    torch.library.opcheck(combine_fused, (rows, positions, torch.ones((2, 2), device=kernel_device)))
