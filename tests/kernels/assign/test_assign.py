"""`assign` against a token-by-token oracle, and its refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.errors import UsageError
from specmoe.kernels.assign.assign import assign, assign_slots, group_by_slot
from specmoe.kernels.routing_tables import RoutingTables
from specmoe.placement.plan import PlacementPlan

CPU = torch.device("cpu")


# The oracle: the rules once more, token by token in plain Python, sharing nothing with the implementation.
def serving_slots(plan: PlacementPlan, row: int, experts: list[int], home: int) -> list[int]:
    """The slot that serves each of one token's experts."""
    at = {rank: {} for rank in range(plan.ep_size)}
    for slot, expert in enumerate(plan.physical_to_logical[row].tolist()):
        at[int(plan.rank_of_physical[slot])][expert] = slot
    named = {expert: int(plan.dispatch_slot[row, home, expert]) for expert in experts}
    if plan.replica_choice == "static":
        return [named[expert] for expert in experts]
    node = plan.topology.node_of_rank
    chosen = {expert: at[home][expert] for expert in experts if expert in at[home]}
    while len(chosen) < len(experts):
        left = [expert for expert in experts if expert not in chosen]

        def preference(rank: int, left: list[int] = left) -> tuple[int, bool, int, int]:
            held = sum(expert in at[rank] for expert in left)
            named_here = sum(plan.rank_of_physical[named[expert]] == rank for expert in left)
            return (held, bool(node[rank] == node[home]), int(named_here), -((rank - home) % plan.ep_size))

        best = max(range(plan.ep_size), key=preference)
        chosen |= {expert: at[best][expert] for expert in left if expert in at[best]}
    return [chosen[expert] for expert in experts]


def rows_by_rank(plan: PlacementPlan, slots: list[list[int]]) -> list[tuple[int, int, list[int]]]:
    """(rank, token, the places k of its pairs) for every row, in the order in which rows are numbered."""
    rows = []
    for rank in range(plan.ep_size):
        for token, of_token in enumerate(slots):
            places = [k for k, slot in enumerate(of_token) if plan.rank_of_physical[slot] == rank]
            if places:
                rows.append((rank, token, places))
    return rows


def _case(random_plan, seed, nodes, num_experts, top_k, extra, choice, num_tokens, hot=False, uneven=False):
    rng = np.random.default_rng(seed)
    plan = random_plan(
        rng,
        num_experts=num_experts,
        ranks_per_node=nodes,
        top_k=top_k,
        extra_slots=extra,
        replica_choice=choice,
        uneven=uneven,
    )
    weights = np.ones(num_experts)
    weights[0] = 1e6 if hot else 1
    experts = [rng.choice(num_experts, top_k, replace=False, p=weights / weights.sum()) for _ in range(num_tokens)]
    index = torch.tensor(np.array(experts).reshape(num_tokens, top_k), dtype=torch.int64)
    home = torch.tensor(rng.integers(0, plan.ep_size, num_tokens), dtype=torch.int32)
    return plan, index, torch.rand(num_tokens, top_k), home


@st.composite
def cases(draw):
    nodes = draw(st.sampled_from([(1,), (2,), (3,), (2, 2), (1, 3), (2, 1, 2)]))
    num_experts = draw(st.integers(sum(nodes), 12))
    return (
        draw(st.integers(0, 10**6)),
        nodes,
        num_experts,
        draw(st.integers(1, min(num_experts, 5))),
        draw(st.integers(0, 3)),
        draw(st.sampled_from(["static", "cover"])),
        draw(st.integers(0, 17)),
        draw(st.booleans()),
        draw(st.booleans()),
    )


@settings(max_examples=80, deadline=None)
@given(cases())
def test_rows_and_slots_are_those_of_the_oracle(random_plan, case):
    plan, index, weights, home = _case(random_plan, *case)
    assignment = assign(index, weights, home, RoutingTables.of_layer(plan, 0, CPU))
    slots = [
        serving_slots(plan, 0, experts, start) for experts, start in zip(index.tolist(), home.tolist(), strict=True)
    ]
    assert assignment.pair_slot.tolist() == slots
    rows = rows_by_rank(plan, slots)
    T, K = index.shape
    assert assignment.row_offsets.tolist() == [sum(r < rank for r, _, _ in rows) for rank in range(plan.ep_size + 1)]
    pairs_below = [sum(len(ks) for r, _, ks in rows if r < rank) for rank in range(plan.ep_size + 1)]
    assert assignment.pair_offsets.tolist() == pairs_below
    row_of_pair = torch.full((T, K), -1)
    token_rows = torch.full((T, K), -1)
    for number, (_, token, places) in enumerate(rows):
        row_of_pair[token, places] = number
        token_rows[token, places[0]] = number
        carried = [slots[token][k] for k in places] + [-1] * (K - len(places))
        assert assignment.row_slots[number].tolist() == carried
        expected = weights[token, places].tolist() + [0.0] * (K - len(places))
        assert assignment.row_weights[number].tolist() == expected
    assert torch.equal(assignment.row_of_pair.long(), row_of_pair)
    assert torch.equal(assignment.token_rows.long(), token_rows)
    assert assignment.row_slots.shape == (T * min(K, plan.ep_size), K)
    assert (assignment.row_slots[len(rows) :] == -1).all()


@settings(max_examples=30, deadline=None)
@given(cases(), st.data())
def test_groups_hold_every_pair_of_the_local_slots_once_in_row_order(random_plan, case, data):
    plan, index, weights, home = _case(random_plan, *case)
    assignment = assign(index, weights, home, RoutingTables.of_layer(plan, 0, CPU))
    rank = data.draw(st.integers(0, plan.ep_size - 1))
    first, end = plan.slot_offsets[rank], plan.slot_offsets[rank + 1]
    mine = assignment.row_slots[assignment.row_offsets[rank] : assignment.row_offsets[rank + 1]]
    groups = group_by_slot(mine.contiguous(), int(first), int(end - first))
    pairs = sorted((int(mine[n, k]), n, k) for n, k in torch.nonzero(mine >= 0).tolist())
    positions = [int(groups.positions[n, k]) for _, n, k in pairs]
    assert positions == list(range(len(pairs)))
    assert groups.slot_offsets.tolist() == [sum(s < slot for s, _, _ in pairs) for slot in range(first, end + 1)]
    assert bool((groups.positions[mine < 0] == -1).all())


def test_large_sizes_of_the_supported_range_run(random_plan):
    plan, index, weights, home = _case(random_plan, 0, (64, 64, 64, 64), 1024, 32, 1, "cover", 33)
    assignment = assign(index, weights, home, RoutingTables.of_layer(plan, 0, CPU))
    token = 32
    assert assignment.pair_slot[token].tolist() == serving_slots(plan, 0, index[token].tolist(), int(home[token]))


def test_a_million_tokens_run(random_plan):
    plan, *_ = _case(random_plan, 0, (2,), 1024, 2, 0, "static", 0)
    T = 2**20
    first = torch.arange(T) % 1024
    index, home = torch.stack([first, (first + 1) % 1024], dim=1), (torch.arange(T) % 2).to(torch.int32)
    assignment = assign(index, torch.ones(T, 2), home, RoutingTables.of_layer(plan, 0, CPU))
    slots = plan.dispatch_slot[0][home[:, None], index]
    assert np.array_equal(assignment.pair_slot, slots)
    goes = (plan.rank_of_physical[slots][:, :, None] == np.arange(2)).any(axis=1)
    assert assignment.row_offsets.tolist() == [0, goes[:, 0].sum(), goes.sum()]
    assert assignment.token_rows.max() == goes.sum() - 1


def test_cover_takes_tokens_in_blocks_without_changing_the_result(random_plan, monkeypatch):
    plan, index, weights, home = _case(random_plan, 3, (2, 2), 12, 4, 2, "cover", 50)
    tables = RoutingTables.of_layer(plan, 0, CPU)
    whole = assign(index, weights, home, tables)
    monkeypatch.setattr("specmoe.kernels.assign.reference.COVER_BLOCK_TOKENS", 7)
    assert torch.equal(assign(index, weights, home, tables).pair_slot, whole.pair_slot)


BAD = {
    "an expert that does not exist": (lambda i, w, h: (i + 12, w, h), "top_k_index has values"),
    "a negative expert": (lambda i, w, h: (i - 12, w, h), "top_k_index has values"),
    "a home that does not exist": (lambda i, w, h: (i, w, h + 4), "home_rank has values"),
    "floating expert ids": (lambda i, w, h: (i.float(), w, h), "top_k_index is torch.float32"),
    "weights of another shape": (lambda i, w, h: (i, w[:, :1].contiguous(), h), "top_k_weights has shape"),
    "homes of another length": (lambda i, w, h: (i, w, h[:3]), "home_rank has shape"),
    "a transposed index": (lambda i, w, h: (i.T.contiguous().T, w, h), "not contiguous"),
    "too many experts per token": (
        lambda i, w, h: (torch.zeros(1, 33, dtype=torch.int64), torch.zeros(1, 33), h[:1]),
        "top-33 and 4 ranks were given",
    ),
    "no experts per token": (lambda i, w, h: (i[:, :0], w[:, :0], h), "top-0 and 4 ranks were given"),
    "more tokens than a million": (
        lambda i, w, h: (i[:1].repeat(2**20 + 1, 1), w[:1].repeat(2**20 + 1, 1), h),
        "1048577 tokens",
    ),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_input_is_refused(random_plan, change, message):
    plan, index, weights, home = _case(random_plan, 1, (4,), 12, 3, 0, "static", 9)
    with pytest.raises(UsageError, match=message):
        assign(*change(index, weights, home), RoutingTables.of_layer(plan, 0, CPU))


@pytest.mark.parametrize(
    ("slots", "message"),
    [([[3], [8]], "row_slots has values from 3 to 8, 3 <= value < 7 or -1"), ([[2], [-1]], "from 2 to 2")],
    ids=["above", "below"],
)
def test_slots_of_others_are_refused(slots, message):
    with pytest.raises(UsageError, match=message):
        group_by_slot(torch.tensor(slots, dtype=torch.int32), 3, 4)


def test_given_slots_that_do_not_exist_are_refused(random_plan):
    plan, index, weights, home = _case(random_plan, 1, (4,), 12, 3, 0, "static", 9)
    tables = RoutingTables.of_layer(plan, 0, CPU)
    with pytest.raises(UsageError, match=r"pair_slot has values from .* 0 <= value < 12 or -1"):
        assign_slots(index.to(torch.int32) + 12, weights, home, tables)
