"""What assign and group do on the CPU, beside the reference, bit for bit, with pairs that are left out too."""

from dataclasses import fields

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.kernels.assign.compiled import choose_slots_compiled, group_by_slot_compiled, rows_of_pairs_compiled
from specmoe.kernels.assign.reference import choose_slots, group_by_slot_reference, rows_of_pairs
from specmoe.kernels.routing_tables import RoutingTables

CPU = torch.device("cpu")


def _require_equal(result, expected):
    for field in fields(expected):
        ours, theirs = getattr(result, field.name), getattr(expected, field.name)
        assert ours.dtype == theirs.dtype, field.name
        assert torch.equal(ours, theirs), field.name


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    nodes=st.sampled_from([(1,), (3,), (2, 2), (2, 1, 2)]),
    top_k=st.integers(1, 5),
    extra=st.integers(0, 3),
    choice=st.sampled_from(["static", "cover"]),
    num_tokens=st.integers(0, 17),
    index_type=st.sampled_from([torch.int32, torch.int64]),
    left_out=st.floats(0, 1),
)
def test_rows_are_those_of_the_reference(
    random_plan, seed, nodes, top_k, extra, choice, num_tokens, index_type, left_out
):
    rng = np.random.default_rng(seed)
    plan = random_plan(
        rng, num_experts=9, ranks_per_node=nodes, top_k=top_k, extra_slots=extra, replica_choice=choice, uneven=True
    )
    tables = RoutingTables.of_layer(plan, 0, CPU)
    experts = np.argsort(rng.random((num_tokens, 9)), axis=1)[:, :top_k]
    index = torch.tensor(np.where(rng.random(experts.shape) < left_out, -1, experts)).to(index_type)
    home = torch.tensor(rng.integers(0, plan.ep_size, num_tokens), dtype=torch.int32)
    slots = choose_slots_compiled(index, home, tables)
    assert torch.equal(slots, choose_slots(index.long(), home.long(), tables).to(torch.int32))
    weights = torch.tensor(rng.random(experts.shape), dtype=torch.bfloat16)
    _require_equal(rows_of_pairs_compiled(slots, weights, tables), rows_of_pairs(slots, weights, tables))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), num_rows=st.integers(0, 25), top_k=st.integers(1, 5), first=st.integers(0, 9),
    num_slots=st.integers(1, 20), alignment=st.sampled_from([1, 8, 5]), left_out=st.floats(0, 1),
)  # fmt: skip
def test_groups_are_those_of_the_reference(seed, num_rows, top_k, first, num_slots, alignment, left_out):
    rng = np.random.default_rng(seed)
    slots = rng.integers(first, first + num_slots, (num_rows, top_k))
    row_slots = torch.tensor(np.where(rng.random(slots.shape) < left_out, -1, slots), dtype=torch.int32)
    groups = group_by_slot_compiled(row_slots, first, num_slots, alignment)
    _require_equal(groups, group_by_slot_reference(row_slots, first, num_slots, alignment))
