"""Dispatch's kernel against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.dispatch import fused
from specmoe.kernels.dispatch.fused import copy_rows, dispatch_fused, dispatch_scaled_fused
from specmoe.kernels.dispatch.reference import dispatch_reference
from specmoe.kernels.launch.shapes import LaunchShape

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


def _rows(generator, num_rows, width, dtype):
    return (torch.randn((num_rows, width), generator=generator) * 50).to(dtype)


def _positions(generator, T, C, num_rows, share):
    positions = torch.randperm(num_rows, generator=generator)[: T * C].view(T, C).to(torch.int32)
    return positions.masked_fill(torch.rand((T, C), generator=generator) > share, -1)


def _assert_same_places(out, expected, positions):
    assert out.dtype == expected.dtype
    assert out.shape == expected.shape
    written = positions[positions >= 0].long().cpu()
    assert torch.equal(out.cpu().view(torch.uint8)[written], expected.view(torch.uint8)[written])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(0, 9),
    C=st.integers(1, 12),
    spare=st.integers(0, 3),
    width=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_place_gets_its_row(kernel_device, poisoned, seed, T, C, spare, width, dtype, share):
    generator = torch.Generator().manual_seed(seed)
    rows = _rows(generator, T, width, dtype)
    positions = _positions(generator, T, C, T * C + spare, share)
    with poisoned():
        out = dispatch_fused(rows.to(kernel_device), positions.to(kernel_device), T * C + spare)
    _assert_same_places(out, dispatch_reference(rows, positions, T * C + spare), positions)


@pytest.mark.parametrize("width", [2048, 2880, 7169])
def test_rows_wider_than_a_block_are_whole(kernel_device, width):
    generator = torch.Generator().manual_seed(width)
    rows = _rows(generator, 3, width, torch.bfloat16)
    positions = _positions(generator, 3, 2, 6, 0.7)
    out = dispatch_fused(rows.to(kernel_device), positions.to(kernel_device), 6)
    _assert_same_places(out, dispatch_reference(rows, positions, 6), positions)


@pytest.mark.parametrize("block", [4, 1024])
def test_quantized_rows_travel_with_their_scales(kernel_device, monkeypatch, block):
    monkeypatch.setattr(fused, "SHAPE", LaunchShape(block=block, warps=4))
    generator = torch.Generator().manual_seed(1)
    rows, scales = _rows(generator, 5, 256, torch.float8_e4m3fn), torch.rand((5, 11), generator=generator)
    positions = _positions(generator, 5, 3, 17, 0.6)
    arguments = [tensor.to(kernel_device) for tensor in (rows, scales, positions)]
    out, out_scales = dispatch_scaled_fused(*arguments, 17)
    _assert_same_places(out, dispatch_reference(rows, positions, 17), positions)
    _assert_same_places(out_scales, dispatch_reference(scales, positions, 17), positions)


def test_rows_at_an_odd_address_are_copied_too(kernel_device):
    buffer = torch.arange(1 + 3 * 8, dtype=torch.uint8, device=kernel_device)
    rows = buffer[1:].view(3, 8)
    positions = torch.tensor([[2], [-1], [0]], dtype=torch.int32, device=kernel_device)
    out = dispatch_fused(rows, positions, 3)
    assert torch.equal(out[2], rows[0])
    assert torch.equal(out[0], rows[2])


def test_places_that_nothing_names_are_not_written(kernel_device, poisoned):
    positions = torch.tensor([[1]], dtype=torch.int32, device=kernel_device)
    with poisoned():
        out = dispatch_fused(torch.zeros((1, 4), device=kernel_device), positions, 3)
    assert out.isnan().any(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("place", [1, 2**31 - 1, -2, -(2**31)])
def test_a_place_outside_the_output_is_left_out(kernel_device, place):
    positions = torch.tensor([[place, 0]], dtype=torch.int32, device=kernel_device)
    # The middle of a buffer, so that what is written beside it shows.
    buffer = torch.zeros((4, 4), device=kernel_device)
    copy_rows(positions, torch.ones((1, 4), device=kernel_device), buffer[2:3], None, None, fused.SHAPE)
    assert buffer.sum(dim=1).tolist() == [0.0, 0.0, 4.0, 0.0]


def test_the_operator_tells_shapes_without_running(kernel_device):
    rows = torch.ones((4, 6), dtype=torch.bfloat16, device=kernel_device)
    positions = torch.tensor([[0], [2], [1], [-1]], dtype=torch.int32, device=kernel_device)
    # Places that nothing names differ between two runs, so every place is named here but the last row's.
    torch.library.opcheck(dispatch_fused, (rows, positions, 3))
    torch.library.opcheck(dispatch_scaled_fused, (rows, rows.float(), positions, 3))
