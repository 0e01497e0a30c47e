"""The kernels inside `torch.compile`, and on a GPU inside CUDA graphs, without waiting for the device."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from specmoe.kernels.assign.assign import assign, group_by_slot
from specmoe.kernels.assign.fused import assign_fused
from specmoe.kernels.assign.group_fused import group_by_slot_fused
from specmoe.kernels.combine.combine import combine
from specmoe.kernels.combine.fused import combine_fused
from specmoe.kernels.dispatch.dispatch import dispatch
from specmoe.kernels.dispatch.fused import dispatch_fused
from specmoe.kernels.routing_tables import RoutingTables

NUM_ROWS = 24


@pytest.fixture
def layer(random_plan, kernel_device):
    """A plan's tables and one batch: hidden, index, weights, home."""
    rng = np.random.default_rng(0)
    plan = random_plan(rng, num_experts=8, ranks_per_node=(2, 2), top_k=3, extra_slots=1, replica_choice="cover")
    index = torch.tensor(np.array([rng.choice(8, 3, replace=False) for _ in range(8)]), device=kernel_device)
    hidden = torch.tensor(rng.normal(size=(8, 16)), dtype=torch.float32, device=kernel_device)
    weights = torch.tensor(rng.random((8, 3)), dtype=torch.float32, device=kernel_device)
    home = torch.tensor(rng.integers(0, 4, 8), dtype=torch.int32, device=kernel_device)
    return RoutingTables.of_layer(plan, 0, kernel_device), (hidden, index, weights, home)


def by_kernels(tables, hidden, index, weights, home):
    """Every row to its slots and back, through the kernels on any device."""
    assignment = assign_fused(index, weights, home, tables, "cover")
    rows = dispatch_fused(hidden, assignment.token_rows, NUM_ROWS)
    groups = group_by_slot_fused(assignment.row_slots, 0, tables.num_physical_experts, 8)
    places = NUM_ROWS + 8 * tables.num_physical_experts
    products = dispatch_fused(rows, groups.positions, places)
    partial = combine_fused(products, groups.positions, assignment.row_weights)
    return combine_fused(partial, assignment.token_rows, None)


def by_public_functions(tables, hidden, index, weights, home):
    """The same through the functions that choose by device."""
    assignment = assign(index, weights, home, tables)
    rows = dispatch(hidden, assignment.token_rows, NUM_ROWS)
    groups = group_by_slot(assignment.row_slots, 0, tables.num_physical_experts, 8)
    products = dispatch(rows, groups.positions, NUM_ROWS + 8 * tables.num_physical_experts)
    partial = combine(products, groups.positions, assignment.row_weights)
    return combine(partial, assignment.token_rows, None)


def expected_of(hidden, weights):
    return hidden * weights.sum(dim=1, keepdim=True)


def test_a_step_compiles_into_one_graph(layer):
    tables, (hidden, index, weights, home) = layer
    compiled = torch.compile(by_kernels, backend="aot_eager", fullgraph=True)
    out = compiled(tables, hidden, index, weights, home)
    torch.testing.assert_close(out, expected_of(hidden, weights))
    torch.testing.assert_close(by_public_functions(tables, hidden, index, weights, home), out)


def test_going_backward_through_a_kernel_is_an_error(kernel_device):
    rows = torch.ones((1, 4), device=kernel_device, requires_grad=True)
    out = combine_fused(rows, torch.zeros((1, 1), dtype=torch.int32, device=kernel_device), None)
    with pytest.raises(NotImplementedError, match="specmoe::combine has no gradient"):
        out.sum().backward()


@pytest.mark.gpu
def test_the_functions_compile_into_one_graph_on_a_gpu(layer):
    tables, (hidden, index, weights, home) = layer
    compiled = torch.compile(by_public_functions, fullgraph=True)
    torch.testing.assert_close(compiled(tables, hidden, index, weights, home), expected_of(hidden, weights))


@pytest.mark.gpu
def test_a_cuda_graph_replays_on_new_values_without_waiting_for_the_device(layer):
    tables, inputs = layer
    hidden, _, weights, _ = inputs
    by_public_functions(tables, *inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        by_public_functions(tables, *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = by_public_functions(tables, *inputs)
    hidden.mul_(3)
    weights.add_(1)
    graph.replay()
    torch.testing.assert_close(out, expected_of(hidden, weights))


@pytest.mark.gpu
def test_development_mode_finds_ids_out_of_range_on_the_device():
    code = "\n".join(
        [
            "import torch",
            "from specmoe.kernels.combine.combine import combine",
            "positions = torch.tensor([[5]], dtype=torch.int32, device='cuda')",
            "combine(torch.ones((2, 4), device='cuda'), positions, None)",
            "torch.cuda.synchronize()",
        ]
    )
    run = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "positions has values outside 0 <= value < 2 or -1" in run.stderr
