"""A token goes to every other node once, and there to the ranks that hold its experts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from specmoe.kernels.assign.assign import assign
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.runtime.exchange import ReceivedRows
from specmoe.runtime.relays import Relays
from specmoe.runtime.workers import Workers

CPU = torch.device("cpu")


def workers(process, world_size, ep_size=4):
    return Workers(ep_size=ep_size, process=process, world_size=world_size, device=CPU)


@pytest.fixture
def plan(random_plan):
    """Five ranks, three on the first node, and a link between the nodes that is four times as slow."""
    made = random_plan(np.random.default_rng(3), num_experts=12, ranks_per_node=(3, 2), top_k=4, extra_slots=1)
    return replace(made, topology=replace(made.topology, intra_node_gb_per_s=4.0, inter_node_gb_per_s=1.0))


@pytest.mark.parametrize("process", range(5))
def test_each_token_has_one_row_for_every_node_that_serves_it(plan, process):
    relays = Relays.of_plan(plan, workers(process, 5, ep_size=5))
    tables = RoutingTables.of_layer(plan, 0, CPU)
    index = torch.stack([torch.randperm(12, generator=torch.Generator().manual_seed(t))[:4] for t in range(40)])
    weights = torch.rand((40, 4), generator=torch.Generator().manual_seed(99))
    home = torch.full((40,), process, dtype=torch.int32)
    direct = assign(index, weights, home, tables)
    rows = relays.by_node(direct.pair_slot, weights, home, tables)

    node_of_slot = tables.node_of_rank[tables.rank_of_slot.long()]
    nodes = [set(node_of_slot[slots.long()].tolist()) for slots in direct.pair_slot]
    targets = rows.row_offsets.diff()
    own_node = int(tables.node_of_rank[process])
    other = relays.relay_of_node[1 - own_node]
    assert int(targets.sum()) == sum(len(served) for served in nodes)
    assert int(targets[process]) == sum(own_node in served for served in nodes)
    assert int(targets[other]) == sum(1 - own_node in served for served in nodes)

    # What a relay passes on: every pair once, with its weight, on the rank that holds it.
    first, last = rows.row_offsets[other], rows.row_offsets[other + 1]
    received = ReceivedRows(
        hidden=torch.zeros((int(last - first), 8)),
        slots=rows.row_slots[first:last].contiguous(),
        weights=rows.row_weights[first:last].contiguous(),
    )
    within = relays.within_node(received, int(other), tables)
    reached = {rank for rank in range(5) if within.row_offsets[rank] < within.row_offsets[rank + 1]}
    assert reached <= {rank for rank in range(5) if tables.node_of_rank[rank] != own_node}
    is_far = node_of_slot[direct.pair_slot.long()] != own_node
    sent = torch.cat([direct.pair_slot[is_far].sort().values, weights[is_far].sort().values])
    has_pair = within.row_slots >= 0
    passed = torch.cat([within.row_slots[has_pair].sort().values, within.row_weights[has_pair].sort().values])
    assert torch.equal(sent, passed)


def test_processes_of_a_node_share_the_relays_of_the_other_one(plan):
    relays = [Relays.of_plan(plan, workers(process, 5, ep_size=5)).relay_of_node.tolist() for process in range(5)]
    assert relays == [[0, 3], [1, 4], [2, 3], [0, 3], [1, 4]]


def test_rows_go_straight_where_links_between_nodes_are_as_fast_or_a_process_is_on_both(plan, random_plan):
    fast = replace(plan, topology=replace(plan.topology, inter_node_gb_per_s=4.0))
    assert Relays.of_plan(fast, workers(0, 5, ep_size=5)) is None
    assert Relays.of_plan(plan, workers(0, 1, ep_size=5)) is None
    uneven = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(1, 3), top_k=2)
    uneven = replace(uneven, topology=replace(uneven.topology, intra_node_gb_per_s=4.0, inter_node_gb_per_s=1.0))
    assert Relays.of_plan(uneven, workers(0, 2)) is None
    assert Relays.of_plan(uneven, workers(0, 4)) is not None
