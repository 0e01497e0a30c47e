"""What combine does on the CPU, compiled or by index, beside the reference, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.combine.compiled import BITS, combine_compiled
from specmoe.kernels.combine.indexed import combine_indexed
from specmoe.kernels.combine.reference import combine_reference

DTYPES = {combine_compiled: list(BITS), combine_indexed: [*BITS, torch.float16]}
on_cpu = pytest.mark.parametrize("combine_on_cpu", DTYPES, ids=["compiled", "indexed"])


@on_cpu
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(0, 9),
    C=st.integers(1, 12),
    N=st.integers(0, 20),
    width=st.integers(1, 40),
    weighted=st.booleans(),
    data=st.data(),
)
def test_sums_are_those_of_the_reference(combine_on_cpu, seed, T, C, N, width, weighted, data):
    dtype = data.draw(st.sampled_from(DTYPES[combine_on_cpu]))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn((N, width), generator=generator).to(dtype)
    positions = torch.randint(-1, max(N, 1), (T, C), generator=generator).to(torch.int32)
    positions = positions if N else positions.fill_(-1)
    weights = torch.rand((T, C), generator=generator) if weighted else None
    out = combine_on_cpu(rows, positions, weights)
    assert out.dtype == dtype
    assert torch.equal(out, combine_reference(rows, positions, weights))


@on_cpu
@pytest.mark.parametrize("threads", [1, 4])
def test_many_rows_are_added_in_the_same_order_on_any_number_of_threads(combine_on_cpu, threads):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((4000, 96), generator=generator)
    positions = torch.randint(-1, 4000, (3000, 8), generator=generator).to(torch.int32)
    weights = torch.rand((3000, 8), generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(combine_on_cpu(rows, positions, weights), combine_reference(rows, positions, weights))
    finally:
        torch.set_num_threads(before)


@on_cpu
def test_what_nobody_asks_for_may_hold_nan(combine_on_cpu):
    rows = torch.tensor([[float("nan")], [2.0]])
    positions = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int32)
    weights = torch.tensor([[1.0, float("nan")], [float("inf"), 1.0]])
    assert combine_on_cpu(rows, positions, weights).tolist() == [[2.0], [0.0]]
    assert rows[1].item() == 2.0, "the rows themselves stay as they were"


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 1e-40, -0.0])
def test_numbers_at_the_edges_are_rounded_as_torch_rounds_them(number):
    rows = torch.full((1, 3), number, dtype=torch.float32).to(torch.bfloat16)
    positions, weights = torch.zeros((1, 1), dtype=torch.int32), torch.tensor([[1.01]])
    out = combine_compiled(rows, positions, weights)
    assert torch.equal(out, combine_reference(rows, positions, weights)) or (out.isnan().all() and number != number)
