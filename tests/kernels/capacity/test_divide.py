"""A bound's parts for the source ranks: equal ones, and by shares, which add up to the bound."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.capacity.divide import SourceShares, even_limits, quota_limits

CASE = {
    "seed": 3, "num_experts": 6, "top_k": 2, "num_tokens": 1, "choice": "static", "overflow": "drop",
    "with_priority": False, "most": 2,
}  # fmt: skip


def shares_of(parts):
    """`SourceShares` of a list of shares per bin; parts: [bins][R] of whole numbers."""
    parts = torch.tensor(parts, dtype=torch.float64).T
    after = parts.cumsum(dim=0) / parts.sum(dim=0)
    return SourceShares(before=torch.cat([torch.zeros_like(after[:1]), after[:-1]]), after=after)


def slots_of_bins(tables, level):
    """How many slots each expert, or each rank, has."""
    if level == "device":
        return tables.slot_offsets.diff().tolist()
    return (tables.slot_on_rank >= 0).sum(dim=0).tolist()


def test_even_limits_are_the_factor_times_the_slots_share_rounded_up(limit_case):
    tables = limit_case(**CASE, nodes=(2, 1), level="expert").tables
    home = torch.tensor([0, 0, 0, 2], dtype=torch.int32)
    # Nine slots for six experts: those with a replica are bounded by both slots.
    copies = slots_of_bins(tables, "expert")
    assert sorted(copies) != [1] * 6
    assert sum(copies) == 9
    expected = [
        [math.ceil(Fraction(6 * count, 9)) for count in copies],
        [0] * 6,
        [math.ceil(Fraction(2 * count, 9)) for count in copies],
    ]
    assert even_limits(home, 2, tables, 1.0, "expert").tolist() == expected
    # Each rank has a third of the slots; 0.1 * 3 * 10 is 3, whatever binary fractions say.
    assert even_limits(home[:1].repeat(10), 3, tables, 0.1, "device").tolist() == [[1] * 3, [0] * 3, [0] * 3]


def test_quotas_follow_the_shares(limit_case):
    tables = limit_case(**CASE, nodes=(2, 1), level="device").tables
    shares = shares_of([[2, 1, 1], [1, 2, 1], [0, 0, 1]])
    home = torch.arange(3, dtype=torch.int32).repeat(6)
    # 18 tokens with 2 experts each, 12 pairs for each of three equal ranks.
    assert quota_limits(home, 2, tables, 1.0, "device", shares).tolist() == [[6, 3, 0], [3, 6, 0], [3, 3, 12]]
    # A rank with twice the tokens of the others takes the batch for twice as large, and has twice the room.
    doubled = quota_limits(torch.cat([home, torch.zeros(6).int()]), 2, tables, 1.0, "device", shares)
    assert doubled.tolist() == [[12, 6, 0], [3, 6, 0], [3, 3, 12]]


@settings(max_examples=60, deadline=None)
@given(
    st.data(),
    st.sampled_from([(1,), (2,), (3, 1)]),
    st.sampled_from(["expert", "device"]),
    st.integers(0, 20),
    st.integers(1, 400),
)
def test_the_parts_of_equally_full_ranks_add_up_to_the_bound_rounded_up(
    limit_case, data, nodes, level, tokens, percent
):
    tables = limit_case(**CASE, nodes=nodes, level=level).tables
    R, top_k, factor = tables.ep_size, 2, Fraction(percent, 100)
    num_bins = 6 if level == "expert" else R
    parts = data.draw(
        st.lists(st.lists(st.integers(1, 9), min_size=R, max_size=R), min_size=num_bins, max_size=num_bins)
    )
    home = torch.arange(R, dtype=torch.int32).repeat(tokens)
    limits = quota_limits(home, top_k, tables, float(factor), level, shares_of(parts))
    slots = slots_of_bins(tables, level)
    for number in range(num_bins):
        whole = math.ceil(factor * R * tokens * top_k * Fraction(slots[number], tables.num_physical_experts))
        of_source = limits[:, number].tolist()
        # A limit above the batch's pairs is cut down to them.
        assert sum(of_source) == whole or max(of_source) == R * tokens * top_k
        for got, share in zip(of_source, parts[number], strict=True):
            exact = whole * Fraction(share, sum(parts[number]))
            assert math.floor(exact) <= got <= math.ceil(exact) or max(of_source) == R * tokens * top_k


@pytest.mark.gpu
@pytest.mark.parametrize("level", ["expert", "device"])
def test_on_a_gpu_quotas_are_those_of_the_cpu(limit_case, level):
    tables = limit_case(**CASE, nodes=(2, 1), level=level).tables
    shares = shares_of([[2, 1, 1], [1, 2, 1], [1, 5, 1]] * (2 if level == "expert" else 1))
    home = torch.arange(3, dtype=torch.int32).repeat(7)
    expected = quota_limits(home, 2, tables, 1.3, level, shares)
    moved = type(tables)(**{n: v.cuda() if torch.is_tensor(v) else v for n, v in vars(tables).items()})
    on_gpu = SourceShares(before=shares.before.cuda(), after=shares.after.cuda())
    assert torch.equal(quota_limits(home.cuda(), 2, moved, 1.3, level, on_gpu).cpu(), expected)
