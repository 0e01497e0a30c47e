"""`limit_pairs` against a pair-by-pair oracle, its invariants, and its refusals."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.errors import UsageError
from specmoe.kernels.assign.assign import assign, assign_slots
from specmoe.kernels.assign.reference import choose_slots
from specmoe.kernels.capacity.limit import REROUTE_ROUNDS, limit_pairs

OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "nodes": st.sampled_from([(1,), (2,), (3,), (1, 2)]),
        "num_experts": st.integers(4, 9),
        "top_k": st.integers(1, 3),
        "num_tokens": st.integers(0, 15),
        "choice": st.sampled_from(["static", "cover"]),
        "level": st.sampled_from(["expert", "device"]),
        "overflow": st.sampled_from(["drop", "reroute"]),
        "with_priority": st.booleans(),
        "most": st.sampled_from([0, 1, 3, 20]),
    }
)
PLAIN = {
    "seed": 3, "nodes": (2, 1), "num_experts": 6, "top_k": 2, "num_tokens": 12, "choice": "static", "level": "expert",
    "overflow": "reroute", "with_priority": False, "most": 2,
}  # fmt: skip


# The oracle: the rules once more, over Python lists, sharing nothing with the implementation.
def best(pairs, room):
    """The `room` pairs with the highest (priority, score), the earlier (token, place) first among equals."""
    return sorted(pairs, key=lambda pair: (-pair["priority"], -pair["score"], pair["at"]))[: max(room, 0)]


def oracle(case):
    """{(t, k): expert} of the pairs that are served."""
    by_expert = case.capacity.level == "expert"
    home, index = case.home.tolist(), case.index.tolist()
    limits, router = case.capacity.limits.tolist(), case.capacity.router_scores.tolist()
    priority = [0] * len(home) if case.capacity.priority is None else case.capacity.priority.tolist()
    rank = case.tables.rank_of_slot[choose_slots(case.index, case.home.long(), case.tables).long()].tolist()
    held = (case.tables.slot_on_rank >= 0).tolist()
    asked = {}
    for t, experts in enumerate(index):
        for k, expert in enumerate(experts):
            pair = {"priority": priority[t], "score": router[t][expert], "at": (t, k), "expert": expert}
            asked.setdefault((home[t], expert if by_expert else rank[t][k]), []).append(pair)
    served, used = {}, {}
    for (h, column), pairs in asked.items():
        for pair in best(pairs, limits[h][column]):
            served[pair["at"]] = pair["expert"]
            used[h, column] = used.get((h, column), 0) + 1
    if case.capacity.overflow == "drop":
        return served
    rerouted = {t: [] for t in range(len(home))}
    for _ in range(REROUTE_ROUNDS if by_expert else 1):
        offers = {}
        for t, h in enumerate(home):
            column = [e if by_expert else h for e in range(len(router[t]))]
            free = [
                e for e in range(len(router[t]))
                if held[h][e] and e not in index[t] and e not in rerouted[t]
                and limits[h][column[e]] > used.get((h, column[e]), 0)
            ]  # fmt: skip
            free.sort(key=lambda e, t=t: (-router[t][e], e))
            waiting = [(t, k) for k in range(len(index[t])) if (t, k) not in served]
            for at, expert in zip(waiting, free, strict=False):
                offer = {"priority": priority[t], "score": router[t][expert], "at": at, "expert": expert}
                offers.setdefault((h, column[expert]), []).append(offer)
        for (h, column), pairs in offers.items():
            for pair in best(pairs, limits[h][column] - used.get((h, column), 0)):
                served[pair["at"]] = pair["expert"]
                rerouted[pair["at"][0]].append(pair["expert"])
                used[h, column] = used.get((h, column), 0) + 1
    return served


def limited(case):
    return limit_pairs(case.index, case.weights, case.home, case.tables, case.capacity)


def expert_of_slot(tables):
    experts = torch.empty(tables.num_physical_experts, dtype=torch.int64)
    rank, expert = torch.nonzero(tables.slot_on_rank >= 0, as_tuple=True)
    experts[tables.slot_on_rank[rank, expert].long()] = expert
    return experts.tolist()


@settings(max_examples=120, deadline=None)
@given(OPTIONS)
def test_served_pairs_and_weights_are_those_of_the_oracle(limit_case, options):
    case = limit_case(**options)
    result = limited(case)
    expert_of = expert_of_slot(case.tables)
    served = {(t, k): expert_of[result.pair_slot[t, k]] for t, k in torch.nonzero(result.pair_slot >= 0).tolist()}
    assert served == oracle(case)
    for (t, k), expert in served.items():
        assert result.rerouted[t, k] == (expert != case.index[t, k])
        assert result.weights[t, k] == case.capacity.router_scores[t, expert]


@settings(max_examples=60, deadline=None)
@given(OPTIONS)
def test_no_limit_is_exceeded_and_rerouted_pairs_stay_at_home(limit_case, options):
    case = limit_case(**options)
    result = limited(case)
    expert_of = expert_of_slot(case.tables)
    served = torch.zeros_like(case.capacity.limits)
    for t, k in torch.nonzero(result.pair_slot >= 0).tolist():
        slot, home = int(result.pair_slot[t, k]), int(case.home[t])
        rank = int(case.tables.rank_of_slot[slot])
        served[home, expert_of[slot] if case.capacity.level == "expert" else rank] += 1
        assert rank == home or not result.rerouted[t, k]
    assert (served <= case.capacity.limits.clamp(min=0)).all()


@pytest.mark.parametrize("level", ["expert", "device"])
@pytest.mark.parametrize("choice", ["static", "cover"])
def test_room_for_all_changes_nothing(limit_case, level, choice):
    case = limit_case(**PLAIN | {"level": level, "choice": choice})
    case.capacity = replace(case.capacity, limits=torch.full_like(case.capacity.limits, 1000))
    result = limited(case)
    whole = assign(case.index, case.weights, case.home, replace(case.tables, replica_choice=choice))
    rows = assign_slots(result.pair_slot, result.weights, case.home, case.tables)
    for name in ("pair_slot", "token_rows", "row_slots", "row_weights", "row_offsets"):
        assert torch.equal(getattr(rows, name), getattr(whole, name)), name


def test_equal_scores_are_served_in_order_of_arrival(limit_case):
    case = limit_case(**PLAIN | {"overflow": "drop", "nodes": (1,), "num_tokens": 15})
    case.capacity = replace(case.capacity, scores=torch.zeros_like(case.weights))
    kept = limited(case).pair_slot >= 0
    for expert in range(6):
        of_expert = kept[case.index == expert].tolist()
        assert of_expert == sorted(of_expert, reverse=True)


def test_a_pair_that_one_expert_refuses_is_offered_to_the_next(limit_case):
    case = limit_case(**PLAIN | {"nodes": (1,), "num_experts": 4, "top_k": 1, "num_tokens": 4})
    case.index.zero_()
    case.capacity = replace(
        case.capacity,
        limits=torch.tensor([[0, 1, 2, 0]], dtype=torch.int32),
        router_scores=torch.tensor([[0.9, 0.2, 0.1, 0.3]] * 3 + [[0.9, 0.4, 0.1, 0.3]]),
    )
    expert_of = expert_of_slot(case.tables)
    slots = limited(case).pair_slot.flatten().tolist()
    assert [-1 if slot < 0 else expert_of[slot] for slot in slots] == [2, 2, -1, 1]


def test_a_token_is_not_given_the_same_expert_twice(limit_case):
    case = limit_case(**PLAIN | {"nodes": (1,), "num_experts": 4, "top_k": 2, "num_tokens": 2})
    case.index = torch.tensor([[0, 1], [0, 1]])
    case.capacity = replace(
        case.capacity,
        # The first token's second offer loses to the other's first; what it has already got still has room.
        limits=torch.tensor([[0, 0, 4, 1]], dtype=torch.int32),
        router_scores=torch.tensor([[0.9, 0.8, 0.4, 0.3], [0.9, 0.8, 0.2, 0.5]]),
    )
    expert_of = expert_of_slot(case.tables)
    slots = limited(case).pair_slot.tolist()
    assert [[-1 if slot < 0 else expert_of[slot] for slot in of_token] for of_token in slots] == [[2, -1], [3, 2]]


def test_the_slightest_priority_goes_before_any_score(limit_case):
    case = limit_case(**PLAIN | {"overflow": "drop", "nodes": (1,), "num_experts": 4, "top_k": 1, "num_tokens": 2})
    case.index.zero_()
    priority = torch.tensor([1.0, 1.0]).nextafter(torch.tensor([1.0, 2.0]))
    case.capacity = replace(
        case.capacity, scores=torch.tensor([[1e30], [-1e30]]), priority=priority,
        limits=torch.ones((1, 4), dtype=torch.int32),
    )  # fmt: skip
    assert (limited(case).pair_slot >= 0).flatten().tolist() == [False, True]


def test_nan_goes_last(limit_case):
    case = limit_case(**PLAIN | {"overflow": "drop", "nodes": (1,), "num_experts": 4, "top_k": 1, "num_tokens": 3})
    case.index.zero_()
    scores = torch.tensor([[float("nan")], [-float("inf")], [-0.0]])
    case.capacity = replace(case.capacity, scores=scores, limits=torch.full((1, 4), 2, dtype=torch.int32))
    result = limited(case)
    assert (result.pair_slot >= 0).flatten().tolist() == [False, True, True]
    assert result.demand.tolist() == [[3, 0, 0, 0]]


BAD = {
    "limits of another level": ({"level": "device"}, "limits has shape"),
    "an unknown level": ({"level": "node"}, "level is 'node'"),
    "an unknown overflow": ({"overflow": "queue"}, "overflow is 'queue'"),
    "no router scores to reroute by": ({"router_scores": None}, "rerouting needs router_scores"),
    "a priority of another type": ({"priority": torch.zeros(12, dtype=torch.int64)}, "priority is torch.int64"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_wrong_limits_are_refused(limit_case, change, message):
    case = limit_case(**PLAIN)
    case.capacity = replace(case.capacity, **change)
    with pytest.raises(UsageError, match=message):
        limited(case)
