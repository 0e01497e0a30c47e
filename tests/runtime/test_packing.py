"""Packed rows come out as they went in."""

import pytest
import torch

from specmoe.runtime.packing import pack_rows, row_bytes, unpack_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("num_rows", "hidden_size", "top_k"), [(0, 8, 2), (1, 1, 1), (5, 33, 3)])
def test_rows_survive_packing_bit_for_bit(dtype, num_rows, hidden_size, top_k):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((num_rows, hidden_size), generator=generator).to(dtype)
    slots = torch.randint(-1, 2**31 - 1, (num_rows, top_k), generator=generator).to(torch.int32)
    weights = torch.randn((num_rows, top_k), generator=generator)
    packed = pack_rows(hidden, slots, weights)
    assert packed.shape == (num_rows, row_bytes(hidden_size, top_k, dtype))
    assert packed.shape[1] % 16 == 0
    parts = unpack_rows(packed, dtype, hidden_size, top_k)
    for name, expected in (("hidden", hidden), ("slots", slots), ("weights", weights)):
        assert parts[name].dtype == expected.dtype
        assert torch.equal(parts[name], expected)
