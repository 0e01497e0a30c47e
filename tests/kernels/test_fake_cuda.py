"""The public functions on CUDA tensors without data: no GPU is needed to see that they trace and tell shapes."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from specmoe.errors import UsageError
from specmoe.kernels import checks
from specmoe.kernels.assign.assign import assign, assign_slots, group_by_slot
from specmoe.kernels.capacity.capacity import CapacityLimits
from specmoe.kernels.capacity.limit import limit_pairs
from specmoe.kernels.checks import check_values, checking_device_values
from specmoe.kernels.combine.combine import combine
from specmoe.kernels.dispatch.dispatch import dispatch, dispatch_scaled
from specmoe.kernels.routing_tables import RoutingTables

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def no_data():
    with FakeTensorMode():
        yield


def zeros(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype, device=CUDA)


def tables():
    entries = zeros(2, 8)
    return RoutingTables(
        dispatch_slot=entries, slot_on_rank=entries, rank_of_slot=zeros(9), slot_offsets=zeros(3),
        node_of_rank=zeros(2), replica_choice="cover",
    )  # fmt: skip


def step(layer, hidden, index, weights, home):
    """Every row to its slots and back."""
    assignment = assign(index, weights, home, layer)
    assignment = assign_slots(assignment.pair_slot, weights, home, layer)
    rows = dispatch(hidden, assignment.token_rows, 6)
    groups = group_by_slot(assignment.row_slots, 0, 9, 8)
    places, _ = dispatch_scaled(rows, rows.float(), groups.positions, 100)
    return combine(combine(places, groups.positions, assignment.row_weights), assignment.token_rows, None)


def inputs():
    return (
        zeros(3, 16, dtype=torch.bfloat16), zeros(3, 2, dtype=torch.int64), zeros(3, 2, dtype=torch.float32), zeros(3)
    )  # fmt: skip


def test_a_step_on_cuda_tensors_compiles_into_one_graph():
    out = torch.compile(step, backend="eager", fullgraph=True)(tables(), *inputs())
    assert (out.device, out.dtype, tuple(out.shape)) == (CUDA, torch.bfloat16, (3, 16))


def test_a_step_on_cuda_tensors_is_exported_as_one_operator_a_kernel():
    layer = tables()

    class Step(torch.nn.Module):
        def forward(self, *arguments):
            return step(layer, *arguments)

    exported = torch.export.export(Step(), inputs())
    ours = [str(node.target) for node in exported.graph.nodes if str(node.target).startswith("specmoe.")]
    names = ("assign", "assign", "dispatch", "group_by_slot", "dispatch_scaled", "combine", "combine")
    assert ours == [f"specmoe.{name}.default" for name in names]


def test_device_values_are_checked_only_where_it_was_asked_for_and_nothing_waits(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "_assert_async", lambda fits, message: asked.append((tuple(fits.shape), message)))
    check_values("positions", zeros(2, 3), 0, 7, or_none=True)
    with checking_device_values():
        check_values("positions", zeros(2, 3), 0, 7, or_none=True)
    check_values("positions", zeros(2, 3), 0, 7, or_none=True)
    # Python's development mode asks for it all the time.
    assert asked == [((), "positions has values outside 0 <= value < 7 or -1")] * (
        3 if checks.sys.flags.dev_mode else 1
    )


def limit(weights=None, **changes):
    """`limit_pairs` of three tokens, with the changed parts of its capacity."""
    parts = {"limits": zeros(2, 8), "scores": zeros(3, 2).float(), "router_scores": zeros(3, 8).float()}
    capacity = CapacityLimits(level="expert", overflow="reroute", **parts | changes)
    weights = zeros(3, 2).float() if weights is None else weights
    return limit_pairs(zeros(3, 2), weights, zeros(3), tables(), capacity)


CONTIGUITY = {
    "top_k_index": lambda: assign(zeros(2, 3, dtype=torch.int64).T, zeros(3, 2).float(), zeros(3), tables()),
    "home_rank": lambda: assign(zeros(3, 2), zeros(3, 2).float(), zeros(3, 2).select(1, 0), tables()),
    "top_k_weights": lambda: assign(zeros(3, 2), zeros(2, 3).float().T, zeros(3), tables()),
    "pair_slot": lambda: assign_slots(zeros(2, 3).T, zeros(3, 2).float(), zeros(3), tables()),
    "limits": lambda: limit(limits=zeros(8, 2).T),
    "scores": lambda: limit(scores=zeros(2, 3).float().T),
    "router_scores": lambda: limit(router_scores=zeros(8, 3).float().T),
    "priority": lambda: limit(priority=zeros(3, 2).float().select(1, 0)),
    "top_k_weights of limit_pairs": lambda: limit(weights=zeros(2, 3).float().T),
    "row_slots": lambda: group_by_slot(zeros(2, 3).T, 0, 9),
    "rows": lambda: dispatch(zeros(2, 3).T, zeros(3, 1), 3),
    "positions": lambda: dispatch(zeros(3, 2), zeros(2, 3).T, 3),
    "scales of dispatch_scaled": lambda: dispatch_scaled(zeros(3, 2), zeros(2, 3).T, zeros(3, 1), 3),
    "weights": lambda: combine(zeros(3, 2).float(), zeros(3, 2), zeros(2, 3).float().T),
}


@pytest.mark.parametrize(("name", "call"), CONTIGUITY.items(), ids=CONTIGUITY.keys())
def test_tensors_that_are_not_contiguous_are_refused_by_name(name, call):
    name = name.split()[0]
    with pytest.raises(UsageError, match=rf"^{name} is not contiguous; pass {name}\.contiguous\(\)"):
        call()


def test_a_table_of_another_type_is_refused_before_a_kernel_misreads_it():
    with pytest.raises(UsageError, match=r"rank_of_slot is torch\.int64"):
        RoutingTables(
            dispatch_slot=zeros(2, 8), slot_on_rank=zeros(2, 8), rank_of_slot=zeros(9, dtype=torch.int64),
            slot_offsets=zeros(3), node_of_rank=zeros(2), replica_choice="static",
        )  # fmt: skip
