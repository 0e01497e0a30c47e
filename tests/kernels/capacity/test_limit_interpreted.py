"""Capacity's kernels against the reference, bit for bit."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.capacity.capacity import CapacityLimits
from specmoe.kernels.capacity.fused import FusedSteps
from specmoe.kernels.capacity.keep_best import keep_best_op
from specmoe.kernels.capacity.limit import limit_pairs, limit_with
from specmoe.kernels.capacity.nominate import nominate_op
from specmoe.kernels.capacity.reference import ReferenceSteps
from specmoe.kernels.routing_tables import RoutingTables


def _moved(value, device):
    """A dataclass with its tensors on the device."""
    tensors = {field.name: getattr(value, field.name) for field in fields(value)}
    return replace(value, **{name: item.to(device) for name, item in tensors.items() if torch.is_tensor(item)})


@settings(max_examples=12, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {
            "seed": st.integers(0, 10**6),
            "nodes": st.sampled_from([(1,), (1, 1)]),
            "num_experts": st.integers(3, 6),
            "top_k": st.integers(1, 3),
            "num_tokens": st.integers(0, 9),
            "choice": st.sampled_from(["static", "cover"]),
            "level": st.sampled_from(["expert", "device"]),
            "overflow": st.sampled_from(["drop", "reroute"]),
            "with_priority": st.booleans(),
            "most": st.sampled_from([0, 1, 3]),
        }
    )
)
def test_limits_are_those_of_the_reference(kernel_device, limit_case, poisoned, options):
    case = limit_case(**options)
    inputs = (case.index, case.weights, case.home)
    expected = limit_with(ReferenceSteps(), *inputs, case.tables, case.capacity)
    tables: RoutingTables = _moved(case.tables, kernel_device)
    capacity: CapacityLimits = _moved(case.capacity, kernel_device)
    with poisoned():
        result = limit_with(FusedSteps(), *[tensor.to(kernel_device) for tensor in inputs], tables, capacity)
    for field in fields(expected):
        ours, theirs = getattr(result, field.name).cpu(), getattr(expected, field.name)
        assert ours.dtype == theirs.dtype, field.name
        assert torch.equal(ours, theirs), field.name


SOME = {
    "seed": 3, "nodes": (1, 1), "num_experts": 6, "top_k": 2, "num_tokens": 8, "choice": "cover", "level": "expert",
    "overflow": "reroute", "with_priority": True, "most": 2,
}  # fmt: skip


def test_limiting_compiles_into_one_graph(kernel_device, limit_case):
    case = limit_case(**SOME)
    tables, capacity = _moved(case.tables, kernel_device), _moved(case.capacity, kernel_device)
    inputs = [tensor.to(kernel_device) for tensor in (case.index, case.weights, case.home)]

    def slots(*inputs):
        return limit_with(FusedSteps(), *inputs, tables, capacity).pair_slot

    compiled = torch.compile(slots, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), slots(*inputs))


@pytest.mark.gpu
def test_limiting_waits_for_nothing(limit_case):
    case, device = limit_case(**SOME), torch.device("cuda")
    tables, capacity = _moved(case.tables, device), _moved(case.capacity, device)
    inputs = [tensor.to(device) for tensor in (case.index, case.weights, case.home)]
    expected = limit_pairs(*inputs, tables, capacity).pair_slot
    torch.cuda.set_sync_debug_mode("error")
    try:
        slots = limit_pairs(*inputs, tables, capacity).pair_slot
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(slots, expected)


@pytest.mark.parametrize("limit", [0, 1, 700, 1499, 1500, 4000])
def test_groups_longer_than_a_block_keep_the_best(kernel_device, limit):
    generator = torch.Generator().manual_seed(limit)
    key = torch.randint(-3, 3, (1500, 1), generator=generator) << 40
    key[0], key[1] = -(2**63), 2**63 - 1
    group = torch.ones((1500, 1), dtype=torch.int32)
    group[7] = -1
    limits = torch.tensor([5, limit], dtype=torch.int32)
    kept, demand = keep_best_op(*[tensor.to(kernel_device) for tensor in (group, key, limits)])
    expected = ReferenceSteps().keep_best(group, key, limits)
    assert torch.equal(kept.cpu(), expected.kept)
    assert demand.tolist() == [0, 1499]


def test_scores_without_a_value_are_never_nominated(kernel_device):
    scores = torch.tensor([[float("nan"), 0.0, -0.0, float("-inf"), 1.0, 2.0]])
    wants = torch.ones((1, 5), dtype=torch.bool)
    taken, home = torch.tensor([[5, -1]], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    arguments = (wants, scores, taken, torch.ones((1, 6), dtype=torch.bool), home)
    assert ReferenceSteps().nominate(*arguments).tolist() == [[4, 1, 2, -1, -1]]
    assert nominate_op(*[tensor.to(kernel_device) for tensor in arguments]).tolist() == [[4, 1, 2, -1, -1]]


def test_the_operators_tell_shapes_without_running(kernel_device):
    integers = torch.zeros((2, 3), dtype=torch.int32, device=kernel_device)
    torch.library.opcheck(keep_best_op, (integers, integers.long(), integers[0].clone()))
    flags = torch.ones((2, 3), dtype=torch.bool, device=kernel_device)
    scores = torch.rand((2, 3), device=kernel_device)
    torch.library.opcheck(nominate_op, (flags, scores, integers - 1, flags, integers[:, 0].contiguous()))
