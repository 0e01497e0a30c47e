"""`combine` against its definition in double precision."""

import pytest
import torch

from specmoe.errors import UsageError
from specmoe.kernels.combine.combine import combine


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 2e-7), (torch.bfloat16, 2**-8), (torch.float64, 1e-15)]
)
@pytest.mark.parametrize(("T", "C", "N", "H"), [(0, 2, 4, 3), (5, 1, 9, 1), (33, 4, 50, 17), (4, 3, 0, 2)])
def test_sums_are_right_to_one_rounding(T, C, N, H, dtype, rounding, weighted):
    generator = torch.Generator().manual_seed(T)
    rows = torch.rand((N, H), generator=generator, dtype=torch.float64).to(dtype)
    positions = torch.randint(-1, max(N, 1), (T, C), generator=generator).to(torch.int32)
    if N == 0:
        positions.fill_(-1)
    weights = torch.rand((T, C), generator=generator) if weighted else None
    expected = torch.zeros(T, H, dtype=torch.float64)
    for token in range(T):
        for choice in range(C):
            if positions[token, choice] >= 0:
                weight = 1.0 if weights is None else float(weights[token, choice])
                expected[token] += weight * rows[positions[token, choice]].double()
    out = combine(rows, positions, weights)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=rounding, atol=rounding / 8)


def test_a_row_that_nobody_asks_for_may_hold_nan():
    rows = torch.tensor([[float("nan")], [2.0]])
    positions = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int32)
    assert combine(rows, positions, torch.ones(2, 2)).tolist() == [[2.0], [0.0]]


def test_bfloat16_terms_are_added_in_float32():
    rows = torch.tensor([[256.0], [1.0], [1.0]], dtype=torch.bfloat16)
    positions = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    assert combine(rows, positions, None).item() == 258.0


def test_a_position_past_the_rows_is_refused():
    with pytest.raises(UsageError, match="positions has values"):
        combine(torch.zeros(2, 3), torch.tensor([[2]], dtype=torch.int32), None)
