"""The kernels that group pairs by slot against the reference, bit for bit, in one launch and in three."""

from dataclasses import fields

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specmoe.kernels.assign import group_fused
from specmoe.kernels.assign.group_fused import group_by_slot_fused, group_by_slot_op
from specmoe.kernels.assign.reference import group_by_slot_reference


def _row_slots(seed, N, K, first, S, routing):
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(first, first + S, (N, K), generator=generator) if S else torch.full((N, K), -1)
    slots = slots.to(torch.int32)
    if routing == "hot" and S:
        slots = slots.masked_fill(torch.rand((N, K), generator=generator) < 0.9, first)
    if routing == "half empty":
        slots[N // 2 :] = -1
    return slots.masked_fill(torch.rand((N, K), generator=generator) < 0.3, -1)


@pytest.mark.parametrize("launches", [1, 3])
def test_groups_are_those_of_the_reference(kernel_device, poisoned, monkeypatch, launches):
    if launches == 3:
        # Several tiles in a program, several programs, several rounds over their counts, several chunks of slots.
        sizes = {
            "ONE_LAUNCH_PAIRS": 0, "PROGRAM_PAIRS": 32, "TILE_PAIRS": 16, "MAX_SLOTS": 8, "MIN_SLOTS": 1,
            "PAIRS_AT_ONCE": 16, "SUM_PROGRAMS": 2, "SUM_SLOTS": 4,
        }  # fmt: skip
    else:
        sizes = {"TILE_PAIRS": 16, "PAIRS_AT_ONCE": 32}
    for name, value in sizes.items():
        monkeypatch.setattr(group_fused, name, value)

    @settings(max_examples=15, deadline=None)
    @given(
        seed=st.integers(0, 10**6), N=st.integers(0, 25), K=st.integers(1, 5), first=st.integers(0, 9),
        S=st.integers(0, 20), alignment=st.sampled_from([1, 8, 5]),
        routing=st.sampled_from(["any", "hot", "half empty"]),
    )  # fmt: skip
    @example(seed=1, N=40, K=5, first=3, S=60, alignment=1, routing="any")
    @example(seed=2, N=40, K=5, first=0, S=32, alignment=8, routing="any")
    def run(seed, N, K, first, S, alignment, routing):
        row_slots = _row_slots(seed, N, K, first, S, routing)
        with poisoned():
            result = group_by_slot_fused(row_slots.to(kernel_device), first, S, alignment)
        expected = group_by_slot_reference(row_slots, first, S, alignment)
        for field in fields(expected):
            ours, theirs = getattr(result, field.name).cpu(), getattr(expected, field.name)
            assert ours.dtype == theirs.dtype, field.name
            assert torch.equal(ours, theirs), field.name

    run()


def test_aligned_groups_begin_at_multiples_and_overlap_nowhere(kernel_device):
    row_slots = torch.tensor([[4, 5], [4, -1], [6, 4]], dtype=torch.int32, device=kernel_device)
    groups = group_by_slot_fused(row_slots, 4, 4, 8)
    assert groups.slot_offsets.tolist() == [0, 8, 16, 24, 24]
    assert groups.slot_counts.tolist() == [3, 1, 1, 0]
    assert groups.positions.tolist() == [[0, 8], [1, -1], [16, 2]]


@pytest.mark.parametrize("launches", [1, 3])
def test_slots_that_are_not_held_here_are_left_out(kernel_device, poisoned, monkeypatch, launches):
    if launches == 3:
        for name, value in {"ONE_LAUNCH_PAIRS": 0, "MAX_SLOTS": 4, "MIN_SLOTS": 1}.items():
            monkeypatch.setattr(group_fused, name, value)
    # Slots 5 to 10 are held; a program's registers have places for more.
    held = torch.tensor([[5, 11], [12, 10], [4, 5], [2**31 - 1, -(2**31)]], dtype=torch.int32)
    with poisoned():
        groups = group_by_slot_fused(held.to(kernel_device), 5, 6, 4)
    assert groups.positions.tolist() == [[0, -1], [-1, 4], [-1, 1], [-1, -1]]
    assert groups.slot_counts.tolist() == [2, 0, 0, 0, 0, 1]
    assert groups.slot_offsets.tolist() == [0, 4, 4, 4, 4, 4, 8]


def test_the_operator_tells_shapes_without_running(kernel_device):
    row_slots = torch.tensor([[4, 5], [4, -1]], dtype=torch.int32, device=kernel_device)
    torch.library.opcheck(group_by_slot_op, (row_slots, 4, 4, 8))


@pytest.mark.parametrize("num_slots", [1, 256, 1024])
def test_a_decode_step_is_one_launch(kernel_device, monkeypatch, num_slots):
    def refused(*_):
        raise AssertionError("a second kernel")

    monkeypatch.setattr(group_fused, "_count_slots", refused)
    row_slots = _row_slots(0, 256, 8, 5, num_slots, "any")
    groups = group_by_slot_fused(row_slots.to(kernel_device), 5, num_slots, 8)
    assert torch.equal(groups.positions.cpu(), group_by_slot_reference(row_slots, 5, num_slots, 8).positions)
