"""Compiled combine beside the reference, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.combine.compiled import BITS, combine_compiled
from specmoe.kernels.combine.reference import combine_reference


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(0, 9),
    C=st.integers(1, 12),
    N=st.integers(0, 20),
    width=st.integers(1, 40),
    dtype=st.sampled_from(sorted(BITS, key=str)),
    weighted=st.booleans(),
)
def test_sums_are_those_of_the_reference(seed, T, C, N, width, dtype, weighted):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((N, width), generator=generator).to(dtype)
    positions = torch.randint(-1, max(N, 1), (T, C), generator=generator).to(torch.int32)
    positions = positions if N else positions.fill_(-1)
    weights = torch.rand((T, C), generator=generator) if weighted else None
    out = combine_compiled(rows, positions, weights)
    assert out.dtype == dtype
    assert torch.equal(out, combine_reference(rows, positions, weights))


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 1e-40, -0.0])
def test_numbers_at_the_edges_are_rounded_as_torch_rounds_them(number):
    rows = torch.full((1, 3), number, dtype=torch.float32).to(torch.bfloat16)
    positions, weights = torch.zeros((1, 1), dtype=torch.int32), torch.tensor([[1.01]])
    out = combine_compiled(rows, positions, weights)
    assert torch.equal(out, combine_reference(rows, positions, weights)) or (out.isnan().all() and number != number)
