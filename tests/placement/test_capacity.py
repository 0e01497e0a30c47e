"""Capacity outlook: the rule of its module's text in plain Python, its invariants, and known small cases."""

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.errors import ArtifactError, MismatchError, UsageError
from specmoe.placement import capacity
from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.capacity_outlook import BoundOutlook, capacity_outlook
from specmoe.placement.capacity_quotas import running_shares, source_shares
from specmoe.placement.expected_pairs import with_expected_pairs
from specmoe.placement.homes import homes_of
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample

BATCH = 16


def slow_room(plan: PlacementPlan, layer: int, source: int, tokens: int, factor: Fraction, level: str) -> list[int]:
    """The division "plan" once more, in whole fractions: what `source` may send to each expert or rank."""
    assert plan.expected_pairs is not None
    R, P, slots = plan.ep_size, plan.num_physical_experts, plan.rank_of_physical.tolist()
    bins = plan.physical_to_logical[layer].tolist() if level == "expert" else slots
    num_bins = plan.num_logical_experts if level == "expert" else R
    expected = [[Fraction(float(value)) for value in row] for row in plan.expected_pairs[layer]]
    room = []
    for number in range(num_bins):
        part = Fraction(bins.count(number), P)
        whole = ceil(factor * R * tokens * plan.top_k * part)
        asked = [sum(row[p] for p in range(P) if bins[p] == number) for row in expected]
        shares = [a / sum(asked) if sum(asked) else Fraction(1, R) for a in asked]
        running, ends = Fraction(0), {}
        for rank in [(number + turn) % R for turn in range(R)]:
            before, running = running, running + shares[rank]
            hair = Fraction(1, 10**9)
            ends[rank] = floor(whole * running + hair) - floor(whole * before + hair)
        room.append(ends[source])
    return room


def slow_loss(
    plan: PlacementPlan, sample: RoutingSample, layer: int, factor: Fraction, level: str, overflow: str
) -> dict[str, float]:
    assert sample.gate_weights is not None
    K, E, R = plan.top_k, plan.num_logical_experts, plan.ep_size
    homes = homes_of(plan, sample)[layer]
    served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes)
    gates = sample.gate_weights[:, layer].astype(float)
    slots = [plan.rank_of_physical.tolist().count(rank) for rank in range(R)]
    copies = [plan.physical_to_logical[layer].tolist().count(expert) for expert in range(E)]
    lost, rerouted, load = [], [], [0] * R
    for start in range(0, len(homes), BATCH):
        for source in range(R):
            tokens = [t for t in range(start, min(start + BATCH, len(homes))) if homes[t] == source]
            pairs = [(t, k) for t in tokens for k in range(K)]
            share = [Fraction(count, sum(slots)) for count in (copies if level == "expert" else slots)]
            room = [ceil(factor * len(tokens) * K * part) for part in share]
            if plan.expected_pairs is not None:
                room = slow_room(plan, layer, source, len(tokens), factor, level)
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
        plan = with_expected_pairs(plan, sample) if seed % 4 < 2 else plan
        for outlook in capacity_outlook(plan, sample, [0.5, 1.0, 1.1, 2.0]):
            factor = Fraction(outlook.factor).limit_denominator(100)
            assert outlook.division == ("even" if plan.expected_pairs is None else "plan")
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
    plan, sample = one_rank_case([[0.5]], [[0]])
    pairs = capacity.layer_pairs(plan, sample, 0, homes_of(plan, sample)[0])
    # 1.1 * 200 / 4 is 55, and 55.00000000000001 in floating point.
    for tokens, room in ((200, 55), (201, 56)):
        found = capacity.bin_room(plan, 0, replace(pairs, tokens=np.array([tokens])), 1.1, "expert", "even")
        assert found.tolist() == [[room] * 4]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.sampled_from(["expert", "device"]),
    st.floats(0.1, 4),
    st.integers(0, 9),
)
def test_the_parts_of_equally_full_ranks_add_up_to_the_whole_bound(
    seed: int, ep_size: int, level: Any, factor: float, tokens: int
) -> None:
    plan, sample = random_case(seed, ep_size, "dp", seed % 2 if ep_size > 1 else 0, 30)
    plan = with_expected_pairs(plan, sample)
    pairs = capacity.layer_pairs(plan, sample, 0, homes_of(plan, sample)[0])
    one_each = replace(pairs, tokens=np.full(ep_size, tokens), source=np.arange(ep_size, dtype=np.int32))
    room = capacity.bin_room(plan, 0, one_each, factor, level, "plan")
    even = capacity.bin_room(
        plan, 0, replace(one_each, tokens=np.full(ep_size, ep_size * tokens)), factor, level, "even"
    )
    assert (room >= 0).all()
    assert room.sum(axis=0).tolist() == even[0].tolist(), "the bound on all of the ranks' tokens, rounded up once"


@pytest.mark.parametrize("seed", [2, 3], ids=["static", "cover"])
def test_expected_pairs_are_those_of_the_sample_and_of_one_token_more(seed: int) -> None:
    plan, sample = random_case(seed, 4, "dp", 1, 40)
    found, homes = with_expected_pairs(plan, sample).expected_pairs, homes_of(plan, sample)
    assert found is not None
    for layer in range(2):
        ids = sample.expert_ids[:, layer]
        served_by = serve_layer(plan, layer, ids, homes[layer])
        for (rank, slot), value in np.ndenumerate(found[layer]):
            expert, owner = plan.physical_to_logical[layer, slot], plan.rank_of_physical[slot]
            here = ids[homes[layer] == rank] == expert
            served = (here & (served_by[homes[layer] == rank] == owner)).sum()
            prior = (ids == expert).sum() / 40 if plan.dispatch_slot[layer, rank, expert] == slot else 0
            assert value == pytest.approx((served + prior) / (len(here) + 1), rel=1e-6)


def test_a_rank_gets_the_share_that_its_tokens_are_expected_to_ask_for() -> None:
    plan, _ = random_case(2, 2, "dp", 0, 40)
    on_rank_0 = (plan.rank_of_physical == 0).astype(np.float32)
    # Tokens at home on rank 0 send two pairs in three there, those of rank 1 one in three.
    pairs = np.stack([on_rank_0 * 2 / 3 + (1 - on_rank_0) / 3, on_rank_0 / 3 + (1 - on_rank_0) * 2 / 3])
    plan = replace(plan, expected_pairs=np.broadcast_to(pairs, (2, 2, 6)).astype(np.float32))
    np.testing.assert_allclose(source_shares(plan, 1, "device"), [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6)
    of_expert = np.where(plan.holds[1, 0], 2 / 3, 1 / 3)
    np.testing.assert_allclose(source_shares(plan, 1, "expert"), [of_expert, 1 - of_expert], rtol=1e-6)


def test_an_expert_that_the_profile_never_saw_is_shared_evenly() -> None:
    plan, sample = random_case(2, 4, "dp", 0, 40)
    unseen = RoutingSample(expert_ids=np.minimum(sample.expert_ids, 4), gate_weights=sample.gate_weights)
    shares = source_shares(with_expected_pairs(plan, unseen), 0, "expert")
    assert shares[:, 5].tolist() == [0.25] * 4
    running = running_shares(with_expected_pairs(plan, unseen), 0, "expert")
    assert running.before.min() == 0
    assert running.after.max() == 1


def test_a_division_that_the_plan_has_no_figures_for_is_refused() -> None:
    plan, sample = random_case(0, 2, "dp", 0, 10)
    with pytest.raises(MismatchError, match="the plan does not say what traffic it expects"):
        capacity_outlook(plan, sample, [1.0], "plan")


def test_a_plan_with_figures_can_be_bounded_evenly() -> None:
    plan, sample = random_case(3, 4, "dp", 0, 40)
    with_figures = with_expected_pairs(plan, sample)
    assert capacity_outlook(with_figures, sample, [1.0], "even") == capacity_outlook(plan, sample, [1.0])
    assert capacity_outlook(with_figures, sample, [1.0]) != capacity_outlook(plan, sample, [1.0])


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
