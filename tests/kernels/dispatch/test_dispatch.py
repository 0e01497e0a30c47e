"""`dispatch` against its definition, element by element."""

import pytest
import torch

from specmoe.errors import UsageError
from specmoe.kernels.dispatch.dispatch import dispatch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize(("T", "C", "H"), [(0, 3, 5), (1, 1, 1), (7, 3, 5), (64, 4, 33)])
def test_every_place_gets_its_row(dtype, T, C, H):
    generator = torch.Generator().manual_seed(T)
    rows = torch.randint(0, 200, (T, H), generator=generator).to(dtype)
    num_rows = T * C + 3
    positions = torch.randperm(num_rows, generator=generator)[: T * C].view(T, C).to(torch.int32)
    positions[torch.rand((T, C), generator=generator) < 0.4] = -1
    out = dispatch(rows, positions, num_rows)
    assert out.dtype == dtype
    assert out.shape == (num_rows, H)
    for token, choice in torch.nonzero(positions >= 0).tolist():
        assert torch.equal(out[positions[token, choice]], rows[token])


def test_a_place_outside_the_output_is_refused():
    with pytest.raises(UsageError, match="positions has values"):
        dispatch(torch.zeros(2, 3), torch.tensor([[0], [5]], dtype=torch.int32), 4)


def test_rows_that_are_not_contiguous_are_refused():
    with pytest.raises(UsageError, match="not contiguous"):
        dispatch(torch.zeros(3, 2).T, torch.zeros((2, 1), dtype=torch.int32), 4)
