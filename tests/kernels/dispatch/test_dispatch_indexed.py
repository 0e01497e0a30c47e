"""What dispatch does on the CPU, beside the reference."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.dispatch.indexed import dispatch_indexed
from specmoe.kernels.dispatch.reference import dispatch_reference


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(0, 9),
    C=st.integers(1, 6),
    spare=st.integers(0, 5),
    width=st.integers(1, 20),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int32]),
)
def test_named_places_hold_what_the_reference_puts_there(seed, T, C, spare, width, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-9, 9, (T, width), generator=generator).to(dtype)
    places = torch.randperm(T * C + spare, generator=generator)[: T * C].view(T, C)
    positions = torch.where(torch.rand((T, C), generator=generator) < 0.7, places, -1).to(torch.int32)
    named = positions[positions >= 0].long()
    out = dispatch_indexed(rows, positions, T * C + spare)
    assert out.shape == (T * C + spare, width)
    expected = dispatch_reference(rows, positions, T * C + spare)
    assert torch.equal(out[named].float(), expected[named].float())
