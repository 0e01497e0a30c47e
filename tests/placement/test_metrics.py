"""Homes, serving ranks and metrics, against a slow reading of their definitions in plain Python."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from specmoe.placement.homes import homes_of
from specmoe.placement.metrics import METRIC_NAMES, count_traffic, mean_metrics, measure_plan
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingSample

Rng = np.random.Generator


# The definitions, one by one, with lists and fractions and nothing shared with the product.


def slow_dp_homes(plan: PlacementPlan, sample: RoutingSample) -> list[int]:
    T, R = sample.num_tokens, plan.ep_size
    requests: list[list[int]] = []
    for token in range(T):
        if sample.request_ids is None or token == 0 or sample.request_ids[token] != sample.request_ids[token - 1]:
            requests.append([])
        requests[-1].append(token)
    filled, homes, longest = [0] * R, [-1] * T, 0
    for tokens in requests:
        longest = max(longest, len(tokens))
        pull = [Fraction(0)] * R
        for token in tokens[: -(-len(tokens) // 2)]:
            table = plan.token_affinity
            if table is None or sample.token_ids is None or not 0 <= sample.token_ids[token] < len(table):
                continue
            for rank in range(R):
                pull[rank] += Fraction(float(table[sample.token_ids[token], rank]))
        allowed = [rank for rank in range(R) if filled[rank] - min(filled) <= longest]
        chosen = min(allowed, key=lambda rank: (-pull[rank], filled[rank], rank))
        filled[chosen] += len(tokens)
        for token in tokens:
            homes[token] = chosen
    return homes


def slow_tp_homes(plan: PlacementPlan, sample: RoutingSample, layer: int) -> list[int]:
    T, R = sample.num_tokens, plan.ep_size
    homes = [-1] * T

    def entry(token: int) -> tuple[int, float]:
        ranks, sure = plan.token_to_rank, plan.token_confidence
        if ranks is None or sure is None or sample.token_ids is None:
            return -1, 0.0
        token_id = int(sample.token_ids[token])
        known = 0 <= token_id < ranks.shape[1]
        return (int(ranks[layer, token_id]), float(sure[layer, token_id])) if known else (-1, 0.0)

    for start in range(0, T, 4096):
        batch = list(range(start, min(start + 4096, T)))
        room = [len(batch) // R + (1 if rank < len(batch) % R else 0) for rank in range(R)]
        with_entry = [token for token in batch if entry(token)[0] >= 0]
        for token in sorted(with_entry, key=lambda token: (-entry(token)[1], token)):
            rank = entry(token)[0]
            if room[rank] > 0:
                homes[token], room[rank] = rank, room[rank] - 1
        for token in batch:
            if homes[token] < 0:
                rank = room.index(max(room))
                homes[token], room[rank] = rank, room[rank] - 1
    return homes


def slow_serving_ranks(plan: PlacementPlan, layer: int, experts: list[int], home: int) -> dict[int, int]:
    """The rank that serves each of one token's experts."""
    R = plan.ep_size
    node = [n for n, count in enumerate(plan.topology.ranks_per_node) for _ in range(count)]
    held: list[set[int]] = [set() for _ in range(R)]
    for slot, expert in enumerate(plan.physical_to_logical[layer]):
        held[plan.rank_of_physical[slot]].add(int(expert))
    named = {e: int(plan.rank_of_physical[plan.dispatch_slot[layer, home, e]]) for e in experts}
    if plan.replica_choice == "static":
        return named
    served = {e: home for e in experts if e in held[home]}
    while len(served) < len(experts):
        left = [e for e in experts if e not in served]
        rank = min(
            (rank for rank in range(R) if held[rank] & set(left)),
            key=lambda rank: (
                -len(held[rank] & set(left)),
                node[rank] != node[home],
                -sum(named[e] == rank for e in left),
                (rank - home) % R,
            ),
        )
        served |= {e: rank for e in left if e in held[rank]}
    return served


def slow_metrics(plan: PlacementPlan, sample: RoutingSample) -> list[dict[str, float]]:
    layers = []
    for layer in range(plan.num_layers):
        dp = plan.attention == "dp"
        homes = slow_dp_homes(plan, sample) if dp else slow_tp_homes(plan, sample, layer)
        node = [n for n, count in enumerate(plan.topology.ranks_per_node) for _ in range(count)]
        copies = nodes = local = 0
        load, seated = [0] * plan.ep_size, [0] * plan.ep_size
        for token, home in enumerate(homes):
            experts = [int(e) for e in sample.expert_ids[token, layer]]
            ranks = list(slow_serving_ranks(plan, layer, experts, home).values())
            copies += len(set(ranks) - {home})
            nodes += len({node[rank] for rank in ranks} - {node[home]})
            local += ranks.count(home)
            seated[home] += 1
            for rank in ranks:
                load[rank] += 1
        T, R, K = sample.num_tokens, plan.ep_size, plan.top_k
        layers.append(
            {
                "remote_copies_per_token": copies / T,
                "internode_copies_per_token": nodes / T,
                "local_activation_rate": local / (T * K),
                "load_imbalance": max(load) * R / (T * K),
                "balancedness": T * K / (max(load) * R),
                "token_imbalance": max(seated) * R / T,
            }
        )
    return layers


# Random plans and traces.


def random_slots(rng: Rng, R: int, E: int) -> list[int]:
    """Uneven slots per rank: at least one each, at most E, E or more in all."""
    slots = rng.integers(1, min(E, 20) + 1, R).tolist()
    while sum(slots) < E:
        rank = int(rng.integers(R))
        slots[rank] = min(E, slots[rank] + 1)
    return slots


def random_placement(rng: Rng, slots: list[int], E: int) -> list[int]:
    """One layer's experts slot by slot: every expert somewhere, none twice on a rank."""
    held: list[list[int]] = [[] for _ in slots]
    for expert in rng.permutation(E):
        free = [rank for rank, size in enumerate(slots) if len(held[rank]) < size]
        held[rng.choice(free)].append(int(expert))
    for rank, size in enumerate(slots):
        others = rng.permutation([e for e in range(E) if e not in held[rank]])
        held[rank] += others[: size - len(held[rank])].astype(int).tolist()
    return [expert for experts in held for expert in rng.permutation(experts).tolist()]


def random_dispatch(rng: Rng, placement: list[int], rank_of: NDArray[np.int32], R: int, E: int) -> NDArray[np.int32]:
    """int32 [R, E]: a rank's own slot where it has one, any other slot of the expert elsewhere."""
    table = np.empty((R, E), dtype=np.int32)
    for expert in range(E):
        slots = np.flatnonzero(np.array(placement) == expert)
        for rank in range(R):
            own = slots[rank_of[slots] == rank]
            table[rank, expert] = own[0] if len(own) else rng.choice(slots)
    return table


def random_tables(rng: Rng, attention: str, L: int, V: int, R: int) -> dict[str, Any]:
    """Coarse values, so that there are ties."""
    if attention == "dp":
        return {"token_affinity": (rng.integers(-3, 4, (V, R)) / 4).astype(np.float16)}
    return {
        "token_to_rank": rng.integers(-1, R, (L, V)).astype(np.int16),
        "token_confidence": (rng.integers(0, 4, (L, V)) / 3).astype(np.float16),
    }


def random_plan(rng: Rng, nodes: list[int], L: int, E: int, K: int, attention: str, choice: str) -> PlacementPlan:
    topology = Topology(ranks_per_node=tuple(nodes))
    R = topology.ep_size
    slots = random_slots(rng, R, E)
    rank_of = np.repeat(np.arange(R, dtype=np.int32), slots)
    layers = [random_placement(rng, slots, E) for _ in range(L)]
    return PlacementPlan(
        topology=topology,
        num_logical_experts=E,
        top_k=K,
        attention=attention,
        replica_choice=choice,
        layer_ids=np.arange(L, dtype=np.int32),
        physical_to_logical=np.array(layers, dtype=np.int32),
        rank_of_physical=rank_of,
        dispatch_slot=np.stack([random_dispatch(rng, layer, rank_of, R, E) for layer in layers]),
        method="random",
    )


def random_sample(rng: Rng, T: int, L: int, E: int, K: int, V: int) -> RoutingSample:
    """Requests of 1 to 6 tokens; token ids from -1 up to a little beyond V."""
    ids = rng.random((T, L, E)).argsort(axis=-1)[..., :K]
    lengths = rng.integers(1, 7, T)
    requests = np.repeat(rng.permutation(T), lengths)[:T]
    return RoutingSample(
        expert_ids=ids.astype(np.uint8 if E <= 256 else np.uint16),
        token_ids=rng.integers(-1, V + 3, T).astype(np.int32),
        request_ids=requests.astype(np.int32),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[PlacementPlan, RoutingSample]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nodes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    L, E = draw(st.integers(1, 2)), draw(st.integers(max(2, sum(nodes)), 12))
    K, V, T = draw(st.integers(1, min(E, 5))), draw(st.integers(0, 8)), draw(st.integers(1, 40))
    attention, choice = draw(st.sampled_from(["dp", "tp"])), draw(st.sampled_from(["static", "cover"]))
    plan = random_plan(rng, nodes, L, E, K, attention, choice)
    sample = random_sample(rng, T, L, E, K, V)
    if draw(st.booleans()):
        plan = replace(plan, **random_tables(rng, attention, L, V, plan.ep_size))
    without = draw(st.sampled_from([(), ("request_ids",), ("token_ids",), ("request_ids", "token_ids")]))
    return plan, replace(sample, **dict.fromkeys(without))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_metric_is_what_its_definition_says(case: tuple[PlacementPlan, RoutingSample]) -> None:
    plan, sample = case
    measured, expected = measure_plan(plan, sample), slow_metrics(plan, sample)
    assert [layer.to_json() for layer in measured] == [pytest.approx(layer, rel=1e-12) for layer in expected]
    for name in METRIC_NAMES:
        mean = sum(layer[name] for layer in expected) / len(expected)
        assert getattr(mean_metrics(measured), name) == pytest.approx(mean, rel=1e-12)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_every_token_starts_and_every_pair_is_served_where_the_rules_say(
    case: tuple[PlacementPlan, RoutingSample],
) -> None:
    plan, sample = case
    homes = homes_of(plan, sample)
    assert homes.dtype == np.int32
    for layer in range(plan.num_layers):
        slow = slow_dp_homes(plan, sample) if plan.attention == "dp" else slow_tp_homes(plan, sample, layer)
        assert homes[layer].tolist() == slow
        served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes[layer])
        for token, home in enumerate(slow):
            experts = [int(expert) for expert in sample.expert_ids[token, layer]]
            by_rule = slow_serving_ranks(plan, layer, experts, home)
            assert served_by[token].tolist() == [by_rule[expert] for expert in experts]


@pytest.mark.parametrize("with_tables", [True, False], ids=["tables", "no tables"])
def test_tp_slices_are_cut_anew_in_every_batch_of_4096(with_tables: bool) -> None:
    rng = np.random.default_rng(3)
    plan = random_plan(rng, [5], 1, 8, 2, "tp", "static")
    sample = random_sample(rng, 2 * 4096 + 7, 1, 8, 2, 30)
    if with_tables:
        plan = replace(plan, **random_tables(rng, "tp", 1, 30, 5))
    homes = homes_of(plan, sample)[0]
    assert homes.tolist() == slow_tp_homes(plan, sample, 0)
    assert [np.bincount(homes[start : start + 4096]).tolist() for start in (0, 4096, 8192)] == [
        [820, 819, 819, 819, 819],
        [820, 819, 819, 819, 819],
        [2, 2, 1, 1, 1],
    ]


def test_many_ranks_and_experts_are_served_by_the_same_rules() -> None:
    rng = np.random.default_rng(4)
    plan = random_plan(rng, [64, 70], 1, 300, 32, "dp", "cover")
    sample = random_sample(rng, 40, 1, 300, 32, 5)
    assert [layer.to_json() for layer in measure_plan(plan, sample)] == [
        pytest.approx(layer) for layer in slow_metrics(plan, sample)
    ]


def test_the_glossarys_copies_are_counted_once_per_rank_and_node() -> None:
    served_by = np.array([[0, 1, 1], [2, 3, 2], [1, 1, 1]], dtype=np.int16)
    traffic = count_traffic(served_by, np.array([0, 0, 1], dtype=np.int32), np.array([0, 0, 1, 1], dtype=np.int32))
    assert (traffic.remote_copies, traffic.internode_copies, traffic.local_pairs) == (3, 1, 4)
    assert traffic.pairs_of_rank.tolist() == [1, 5, 2, 1]
    assert traffic.tokens_of_rank.tolist() == [2, 1, 0, 0]
