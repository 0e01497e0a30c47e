"""What combine does on the CPU, beside the reference, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.combine.indexed import combine_indexed
from specmoe.kernels.combine.reference import combine_reference


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(0, 9),
    C=st.integers(1, 12),
    N=st.integers(0, 20),
    width=st.integers(1, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    weighted=st.booleans(),
)
def test_sums_are_those_of_the_reference(seed, T, C, N, width, dtype, weighted):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((N, width), generator=generator).to(dtype)
    positions = torch.randint(-1, max(N, 1), (T, C), generator=generator).to(torch.int32)
    positions = positions if N else positions.fill_(-1)
    weights = torch.rand((T, C), generator=generator) if weighted else None
    out = combine_indexed(rows, positions, weights)
    assert out.dtype == dtype
    assert torch.equal(out, combine_reference(rows, positions, weights))


@pytest.mark.parametrize("threads", [1, 4])
def test_many_rows_are_added_in_the_same_order_on_any_number_of_threads(threads):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((4000, 96), generator=generator)
    positions = torch.randint(-1, 4000, (3000, 8), generator=generator).to(torch.int32)
    weights = torch.rand((3000, 8), generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(combine_indexed(rows, positions, weights), combine_reference(rows, positions, weights))
    finally:
        torch.set_num_threads(before)


def test_what_nobody_asks_for_may_hold_nan():
    rows = torch.tensor([[float("nan")], [2.0]])
    positions = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int32)
    weights = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]])
    assert combine_indexed(rows, positions, weights).tolist() == [[2.0], [0.0]]
    assert rows[1].item() == 2.0, "the rows themselves stay as they were"
