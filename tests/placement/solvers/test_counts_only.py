"""Plans from counts alone: at least as even as EPLB's on its own cases, by either way to share an expert's copies."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.check import check_plan
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solve import solve
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile


def counts_profile(counts: Any, groups: int | None = None) -> RoutingProfile:
    counts = np.asarray(counts, dtype=np.int64)
    return RoutingProfile(
        layer_ids=np.arange(len(counts), dtype=np.int32),
        expert_counts=counts,
        num_logical_experts=counts.shape[1],
        top_k=1,
        num_tokens=int(counts[0].sum()),
        num_expert_groups=groups,
    )


def skewed(num_layers: int, num_experts: int, seed: int = 0) -> np.ndarray:
    """int64 [L, E]: the loads that EPLB's figures are known for, Zipf's law with exponent 0.6, shuffled per layer."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(1e6 * np.arange(1, num_experts + 1) ** -0.6) for _ in range(num_layers)])


def balancedness(plan: PlacementPlan, profile: RoutingProfile) -> tuple[float, float]:
    """Mean over heaviest rank, by the dispatch table and by equal shares of the copies; means over layers."""
    report = check_plan(plan, profile)
    report.require_legal()
    assert report.load_of_rank is not None
    share = profile.expert_counts / plan.holds.sum(axis=1)
    load = (plan.holds * share[:, None, :]).sum(axis=2)
    return float((1 / report.load_of_rank.max(axis=1)).mean()), float((load.mean(axis=1) / load.max(axis=1)).mean())


@pytest.mark.parametrize(
    ("experts", "slots", "groups", "nodes", "ranks", "at_least"),
    [
        (256, 288, 8, 4, 32, 0.999),
        (256, 320, 8, 8, 64, 0.995),
        (256, 288, 8, 1, 32, 0.999),
        (256, 288, 8, 18, 72, 0.998),
        (384, 416, None, 4, 32, 0.999),
        (128, 128, None, 1, 8, 0.999),
        (64, 64, None, 1, 8, 0.88),
    ],
)
def test_loads_are_more_even_than_eplb_makes_them_on_its_own_cases(
    experts: int, slots: int, groups: int | None, nodes: int, ranks: int, at_least: float
) -> None:
    profile = counts_profile(skewed(2, experts), groups)
    machine = Topology(ranks_per_node=(ranks // nodes,) * nodes, slots=(slots // ranks,) * ranks)
    ours = balancedness(solve(profile, machine), profile)
    theirs = balancedness(eplb(profile, machine, SolveOptions(expert_groups=groups)), profile)
    assert min(ours) >= at_least
    assert ours[0] > theirs[0]
    assert ours[1] > theirs[1]


def test_a_hot_expert_that_cannot_be_copied_sits_with_the_coldest() -> None:
    counts = skewed(1, 64)
    load = 1 / balancedness(solve(counts_profile(counts), 8), counts_profile(counts))[0]
    ordered = np.sort(counts[0])
    assert load == pytest.approx((ordered[-1] + ordered[:7].sum()) / (ordered.sum() / 8), abs=1e-4)


def test_most_of_a_groups_load_stays_on_its_node() -> None:
    profile = counts_profile(skewed(2, 256), 8)
    plan = solve(profile, Topology(ranks_per_node=(8,) * 4, slots=(9,) * 32))
    group_of_slot = plan.physical_to_logical[0] // 32
    per_node = [np.bincount(part, minlength=8) for part in np.split(group_of_slot, 4)]
    stays = sum(np.sort(groups)[-2:].sum() for groups in per_node)
    assert stays > 0.6 * plan.num_physical_experts


def test_it_is_said_that_coactivation_is_missing_and_how_even_the_loads_are() -> None:
    plan = solve(counts_profile(skewed(2, 64)), 8)
    missing, above = plan.predicted["missing"]
    assert "co-activation was not available" in missing
    assert "1.130 times the mean load" in above
    assert "0.080 above the cap of 1.05" in above
    assert plan.predicted["profile"]["load_imbalance"] == pytest.approx(1.130, abs=1e-3)
    assert plan.objective is None


@pytest.mark.parametrize(("ranks", "groups"), [(2, 4), (4, 8), (8, 4)])
def test_expert_groups_are_kept_and_loads_evened_within_them(ranks: int, groups: int) -> None:
    profile = counts_profile(skewed(3, 32))
    plan = solve(profile, ranks, group_limited=True, expert_groups=groups)
    check_plan(plan, profile, expert_groups=groups).require_legal()
    ordered = solve(profile, ranks, method="linear")
    assert balancedness(plan, profile)[0] > balancedness(ordered, profile)[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_machine_and_no_counts_make_it_less_even_than_eplb(data: st.DataObject) -> None:
    ranks_per_node = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    R = sum(ranks_per_node)
    E = data.draw(st.integers(R, 12))
    sizes = data.draw(st.lists(st.integers(1, E), min_size=R, max_size=R).filter(lambda sizes: sum(sizes) >= E))
    counts = data.draw(st.lists(st.integers(0, 20), min_size=2 * E, max_size=2 * E).filter(any))
    groups = data.draw(st.sampled_from([None, *[g for g in range(1, E + 1) if E % g == 0]]))
    speed = data.draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=R, max_size=R).map(tuple))
    machine = Topology(ranks_per_node=tuple(ranks_per_node), slots=tuple(sizes), relative_speed=speed)
    profile = counts_profile(np.reshape(counts, (2, E)), groups)
    ours = check_plan(solve(profile, machine), profile)
    ours.require_legal()
    theirs = check_plan(eplb(profile, machine, SolveOptions(expert_groups=groups)), profile)
    assert ours.load_of_rank is not None
    assert theirs.load_of_rank is not None
    assert (ours.load_of_rank.max(axis=1) <= theirs.load_of_rank.max(axis=1) + 2e-4).all()
