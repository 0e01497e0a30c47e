"""Assign's kernels against the reference, bit for bit, in one launch and in two."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specmoe.kernels.assign import fused, token_block
from specmoe.kernels.assign.fused import assign_fused, assign_op
from specmoe.kernels.assign.reference import assign_reference, choose_slots, rows_of_pairs
from specmoe.kernels.routing_tables import RoutingTables

CPU = torch.device("cpu")


def _tables(seed, nodes, num_experts, extra, choice, device):
    """A random layer: experts on random ranks, `extra` replicas on random ranks beside, any legal dispatch."""
    rng = np.random.default_rng(seed)
    E, R = num_experts, sum(nodes)
    holds = np.zeros((R, E), dtype=bool)
    holds[rng.permutation(np.arange(E) % R), np.arange(E)] = True
    holds[rng.integers(0, R, extra * R), rng.integers(0, E, extra * R)] = True
    slot_on_rank = np.where(holds, np.cumsum(holds).reshape(R, E) - 1, -1)
    # Each home prefers itself, then the ranks in a random order of its own.
    preference = rng.random((R, R)) - np.eye(R)
    serving = np.stack([np.where(holds, of_home[:, None], 2).argmin(axis=0) for of_home in preference])
    arrays = {
        "dispatch_slot": slot_on_rank[serving, np.arange(E)],
        "slot_on_rank": slot_on_rank,
        "rank_of_slot": np.nonzero(holds)[0],
        "slot_offsets": np.concatenate([[0], np.cumsum(holds.sum(axis=1))]),
        "node_of_rank": np.repeat(np.arange(len(nodes)), nodes),
    }
    tensors = {name: torch.tensor(array, dtype=torch.int32, device=device) for name, array in arrays.items()}
    return RoutingTables(**tensors, replica_choice=choice)


def _tokens(seed, T, K, tables, routing):
    """Experts (a hot one first, only those of rank 0, or any), weights and home ranks of T tokens."""
    rng = np.random.default_rng(seed)
    E, R = tables.num_logical_experts, tables.ep_size
    weight = np.ones(E)
    if routing == "hot":
        weight[0] = 1e6
    if routing == "local":
        held = (tables.slot_on_rank[0] >= 0).cpu().numpy()
        weight[held] = 1e9
    chosen = [rng.choice(E, K, replace=False, p=weight / weight.sum()) for _ in range(T)]
    home = np.zeros(T) if routing == "local" else rng.integers(0, R, T)
    index = torch.tensor(np.array(chosen).reshape(T, K), dtype=torch.int64)
    return index, torch.tensor(rng.random((T, K)), dtype=torch.bfloat16), torch.tensor(home, dtype=torch.int32)


def _assert_equal(result, expected):
    for field in fields(expected):
        ours, theirs = getattr(result, field.name).cpu(), getattr(expected, field.name)
        assert ours.dtype == theirs.dtype, field.name
        assert torch.equal(ours, theirs), field.name


def _check(device, poisoned, case):
    seed, nodes, num_experts, extra, choice, T, K, routing = case
    tables = _tables(seed, nodes, num_experts, extra, choice, CPU)
    inputs = _tokens(seed, T, K, tables, routing)
    on_device = _tables(seed, nodes, num_experts, extra, choice, device)
    with poisoned():
        result = assign_fused(*[tensor.to(device) for tensor in inputs], on_device, choice)
    _assert_equal(result, assign_reference(*inputs, tables))


@st.composite
def cases(draw):
    nodes = draw(st.sampled_from([(1,), (2,), (2, 2), (2, 1, 2)]))
    num_experts = draw(st.integers(sum(nodes), 12))
    return (
        draw(st.integers(0, 10**6)), nodes, num_experts, draw(st.integers(0, 3)),
        draw(st.sampled_from(["static", "cover"])), draw(st.integers(0, 30)),
        draw(st.integers(1, min(num_experts, 5))), draw(st.sampled_from(["any", "hot", "local"])),
    )  # fmt: skip


@pytest.mark.parametrize("launches", ["one", "one, several blocks", "two"])
def test_all_outputs_are_those_of_the_reference(kernel_device, poisoned, monkeypatch, launches):
    if launches == "two":
        # Several blocks in a program, several programs, several rounds over their counts.
        for name, value in [("ONE_LAUNCH_PAIRS", 0), ("MAX_PROGRAMS", 6), ("COUNTS_AT_ONCE", 4)]:
            monkeypatch.setattr(fused, name, value)
        monkeypatch.setattr(token_block, "ELEMENTS_OF_MANY_PROGRAMS", 64)
    if launches == "one, several blocks":
        # One launch whose program has several blocks.
        monkeypatch.setattr(token_block, "ELEMENTS_OF_ONE_PROGRAM", 64)

    @settings(max_examples=15, deadline=None)
    @given(cases())
    @example((0, (2, 2), 12, 0, "static", 0, 3, "any"))
    @example((1, (2, 1, 2), 12, 2, "cover", 50, 5, "hot"))
    def run(case):
        _check(kernel_device, poisoned, case)

    run()


@pytest.mark.parametrize(("T", "K"), [(513, 4), (683, 3), (65, 32)])
def test_just_more_pairs_than_one_launch_takes_are_those_of_the_reference(kernel_device, poisoned, T, K):
    assert T * K > fused.ONE_LAUNCH_PAIRS
    _check(kernel_device, poisoned, (0, (2, 2), 40, 1, "cover", T, K, "hot"))


@pytest.mark.parametrize(("choice", "T"), [("static", 5), ("cover", 3)])
@pytest.mark.parametrize(
    ("nodes", "E", "K"), [((64, 64, 64, 64), 1024, 32), ((33,), 40, 4), ((20, 45), 130, 3)], ids=["largest", "33", "65"]
)
def test_ranks_of_several_words_run(kernel_device, poisoned, choice, T, nodes, E, K):
    _check(kernel_device, poisoned, (0, nodes, E, 1, choice, T, K, "any"))


def test_a_decode_step_is_one_launch(kernel_device, monkeypatch):
    def refused(*_):
        raise AssertionError("a second kernel")

    monkeypatch.setattr(fused, "_count", refused)
    tables = _tables(0, (4,), 16, 0, "static", kernel_device)
    index, weights, home = (tensor.to(kernel_device) for tensor in _tokens(0, 256, 8, tables, "any"))
    assert assign_fused(index, weights, home, tables, "static").pair_slot.shape == (256, 8)


def test_given_slots_are_numbered_and_dropped_pairs_take_no_row(kernel_device):
    tables = _tables(3, (2, 2), 12, 1, "static", CPU)
    index, weights, home = _tokens(3, 9, 4, tables, "any")
    slots = choose_slots(index, home.long(), tables)
    slots[::3] = -1
    slots[1, 1:] = -1
    on_device = _tables(3, (2, 2), 12, 1, "static", kernel_device)
    result = assign_fused(*[tensor.to(kernel_device) for tensor in (slots, weights, home)], on_device, "given")
    _assert_equal(result, rows_of_pairs(slots, weights, tables))


@pytest.mark.parametrize("choice", ["static", "cover"])
def test_ids_out_of_range_touch_no_memory_and_are_dropped(kernel_device, choice):
    tables = _tables(5, (4,), 12, 1, choice, kernel_device)
    index = torch.tensor([[0, 12, 1], [-1, 2, 2**40]], device=kernel_device)
    home = torch.tensor([0, 1], dtype=torch.int32, device=kernel_device)
    result = assign_fused(index, torch.ones((2, 3), device=kernel_device), home, tables, choice)
    assert (result.pair_slot >= 0).tolist() == [[True, False, True], [False, True, False]]


@pytest.mark.parametrize("choice", ["static", "cover"])
def test_tokens_whose_home_does_not_exist_are_dropped(kernel_device, choice):
    tables = _tables(5, (4,), 12, 1, choice, kernel_device)
    index = torch.tensor([[0, 1], [0, 1], [0, 1]], device=kernel_device)
    home = torch.tensor([4, 1, -(2**31)], dtype=torch.int32, device=kernel_device)
    result = assign_fused(index, torch.ones((3, 2), device=kernel_device), home, tables, choice)
    assert (result.pair_slot >= 0).any(dim=1).tolist() == [False, True, False]


def test_given_slots_that_do_not_exist_are_dropped(kernel_device):
    tables = _tables(5, (4,), 12, 1, "static", kernel_device)
    last = tables.num_physical_experts - 1
    slots = torch.tensor([[last, last + 1], [-2, 0], [2**31 - 1, -1]], dtype=torch.int32, device=kernel_device)
    home = torch.zeros(3, dtype=torch.int32, device=kernel_device)
    result = assign_fused(slots, torch.ones((3, 2), device=kernel_device), home, tables, "given")
    assert result.pair_slot.tolist() == [[last, -1], [-1, 0], [-1, -1]]
    assert result.row_offsets[-1] == 2


def test_the_operator_tells_shapes_without_running(kernel_device):
    tables = _tables(0, (2, 2), 12, 1, "cover", kernel_device)
    index, weights, home = (tensor.to(kernel_device) for tensor in _tokens(0, 5, 3, tables, "any"))
    arrays = (
        tables.dispatch_slot, tables.slot_on_rank, tables.rank_bits, tables.rank_of_slot, tables.node_of_rank,
    )  # fmt: skip
    torch.library.opcheck(assign_op, (index, weights, home, *arrays, "cover"))
