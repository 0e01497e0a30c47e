"""Capacity outlook: the rule of its module's text in plain Python, its invariants, and known small cases."""

from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.errors import ArtifactError, UsageError
from specmoe.placement import capacity
from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.capacity_outlook import BoundOutlook, capacity_outlook
from specmoe.placement.homes import homes_of
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

BATCH = 16


def slow_loss(
    plan: PlacementPlan, sample: RoutingSample, layer: int, factor: Fraction, level: str, overflow: str
) -> dict[str, float]:
    assert sample.gate_weights is not None
    K, E, R = plan.top_k, plan.num_logical_experts, plan.ep_size
    homes = homes_of(plan, sample)[layer]
    served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes)
    gates = sample.gate_weights[:, layer].astype(float)
    slots = [plan.rank_of_physical.tolist().count(rank) for rank in range(R)]
    lost, rerouted, load = [], [], [0] * R
    for start in range(0, len(homes), BATCH):
        for source in range(R):
            tokens = [t for t in range(start, min(start + BATCH, len(homes))) if homes[t] == source]
            pairs = [(t, k) for t in tokens for k in range(K)]
            share = [Fraction(1, E)] * E if level == "expert" else [Fraction(s, sum(slots)) for s in slots]
            room = [ceil(factor * len(tokens) * K * part) for part in share]
            over, used = [], {t: set(sample.expert_ids[t, layer].tolist()) for t in tokens}
            for t, k in sorted(pairs, key=lambda pair: (-gates[pair], pair)):
                bin_of = int(sample.expert_ids[t, layer, k] if level == "expert" else served_by[t, k])
                if room[bin_of] > 0:
                    room[bin_of] -= 1
                    load[served_by[t, k]] += 1
                else:
                    over.append((t, k))
            local = plan.physical_to_logical[layer][plan.rank_of_physical == source].tolist()
            for t, k in over:
                left = {e: room[e] if level == "expert" else room[source] for e in local if e not in used[t]}
                free = {e: count for e, count in left.items() if count > 0}
                if overflow == "drop" or not free:
                    lost.append(gates[t, k])
                    continue
                chosen = min(free, key=lambda e: (-free[e], e))
                room[chosen if level == "expert" else source] -= 1
                used[t].add(chosen)
                load[source] += 1
                rerouted.append(gates[t, k])
    return {
        "lost_pair_rate": len(lost) / gates.size,
        "rerouted_pair_rate": len(rerouted) / gates.size,
        "lost_gate_share": sum(lost) / gates.sum(),
        "rerouted_gate_share": sum(rerouted) / gates.sum(),
        "heaviest_load": max(load) * R / gates.size,
    }


def random_case(seed: int, ep_size: int, attention: str, extra: int, num_tokens: int) -> tuple[PlacementPlan, Any]:
    rng = np.random.default_rng(seed)
    E, K, L = 6, 3, 2
    popularity = rng.random((L, E)) ** 2
    ids = (rng.random((num_tokens, L, E)) * popularity).argsort(axis=-1)[..., -K:].astype(np.uint8)
    sample = RoutingSample(
        expert_ids=ids,
        gate_weights=(rng.integers(1, 6, (num_tokens, L, K)) / 8).astype(np.float16),
        request_ids=np.repeat(np.arange(num_tokens), 5)[:num_tokens].astype(np.int32),
    )
    profile = RoutingProfile(
        layer_ids=np.arange(L, dtype=np.int32),
        expert_counts=np.stack([np.bincount(ids[:, layer].ravel(), minlength=E) for layer in range(L)]),
        num_logical_experts=E,
        top_k=K,
        num_tokens=num_tokens,
    )
    choice = "cover" if seed % 2 else "static"
    options = SolveOptions(attention=attention, extra_slots=extra, replica_choice=choice)
    return eplb(profile, Topology.single_node(ep_size), options), sample


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "BATCH_TOKENS", BATCH)


@pytest.mark.parametrize("attention", ["dp", "tp"])
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("ep_size", [1, 2, 4])
def test_every_bound_costs_what_its_rule_says(ep_size: int, extra: int, attention: str) -> None:
    for seed in range(4):
        plan, sample = random_case(seed, ep_size, attention, 0 if ep_size == 1 else extra, 45)
        for outlook in capacity_outlook(plan, sample, [0.5, 1.0, 1.1, 2.0]):
            factor = Fraction(outlook.factor).limit_denominator(100)
            for layer, loss in enumerate(outlook.layers):
                expected = slow_loss(plan, sample, layer, factor, outlook.level, outlook.overflow)
                assert loss.to_json() == pytest.approx(expected, abs=1e-12)


def outlook_of(plan: PlacementPlan, sample: RoutingSample, factor: float, level: str, overflow: str) -> BoundOutlook:
    found = capacity_outlook(plan, sample, [factor])
    return next(item for item in found if (item.level, item.overflow) == (level, overflow))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.sampled_from(["expert", "device"]), st.floats(0.1, 4))
def test_a_larger_factor_loses_no_more_and_rerouting_loses_no_more_than_dropping(
    seed: int, ep_size: int, level: str, factor: float
) -> None:
    plan, sample = random_case(seed, ep_size, "dp", 0, 40)
    dropped = outlook_of(plan, sample, factor, level, "drop").mean
    rerouted = outlook_of(plan, sample, factor, level, "reroute").mean
    assert outlook_of(plan, sample, factor * 1.5, level, "drop").mean.lost_pair_rate <= dropped.lost_pair_rate
    assert rerouted.lost_pair_rate + rerouted.rerouted_pair_rate == pytest.approx(dropped.lost_pair_rate)
    assert rerouted.lost_gate_share <= dropped.lost_gate_share + 1e-12
    assert dropped.rerouted_pair_rate == 0


def one_rank_case(gates: list[list[float]], experts: list[list[int]]) -> tuple[PlacementPlan, RoutingSample]:
    ids = np.array(experts, dtype=np.uint8)[:, None]
    counts = np.bincount(ids.ravel(), minlength=4)[None]
    profile = RoutingProfile(
        layer_ids=np.zeros(1, dtype=np.int32),
        expert_counts=counts,
        num_logical_experts=4,
        top_k=ids.shape[2],
        num_tokens=len(ids),
    )
    sample = RoutingSample(expert_ids=ids, gate_weights=np.array(gates, dtype=np.float16)[:, None])
    return eplb(profile, Topology.single_node(1), SolveOptions()), sample


def test_the_highest_gate_weights_stay_and_the_earlier_of_two_equal_ones() -> None:
    # Capacity is 4 tokens * 1 / 4 experts = 1; all want expert 2.
    plan, sample = one_rank_case([[0.25], [0.75], [0.75], [0.5]], [[2], [2], [2], [2]])
    loss = outlook_of(plan, sample, 1.0, "expert", "drop").mean
    assert loss.lost_pair_rate == 0.75
    assert loss.lost_gate_share == pytest.approx(1.5 / 2.25)


def test_overflow_is_rerouted_to_the_experts_with_room() -> None:
    plan, sample = one_rank_case([[0.25], [0.75], [0.75], [0.5]], [[2], [2], [2], [2]])
    loss = outlook_of(plan, sample, 1.0, "expert", "reroute").mean
    assert (loss.lost_pair_rate, loss.rerouted_pair_rate, loss.heaviest_load) == (0, 0.75, 1)


def test_a_capacity_that_is_a_whole_number_is_not_rounded_up() -> None:
    plan, _ = one_rank_case([[0.5]], [[0]])
    # 1.1 * 200 / 4 is 55, and 55.00000000000001 in floating point.
    assert capacity.bin_room(plan, np.array([200, 201]), 1.1, "expert")[:, 0].tolist() == [55, 56]


def test_an_ample_bound_loses_nothing() -> None:
    plan, sample = random_case(1, 4, "dp", 1, 40)
    for outlook in capacity_outlook(plan, sample, [100.0]):
        assert outlook.mean.lost_pair_rate == outlook.mean.rerouted_pair_rate == 0


def test_a_factor_that_is_not_positive_is_refused() -> None:
    plan, sample = random_case(0, 2, "dp", 0, 10)
    with pytest.raises(UsageError, match="a capacity factor is 0, a positive number was expected"):
        capacity_outlook(plan, sample, [1.0, 0])


def test_a_trace_without_gate_weights_is_refused() -> None:
    plan, sample = random_case(0, 2, "dp", 0, 10)
    with pytest.raises(ArtifactError, match="a capacity outlook needs gate weights"):
        capacity_outlook(plan, RoutingSample(expert_ids=sample.expert_ids), [1.0])
