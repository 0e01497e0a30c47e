"""Eight experts, two a token, as in Mixtral: every plan is the best for its homes, and `solve` proves it."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from specmoe.placement.metrics import measure_plan
from specmoe.placement.solve import solve

sys.path.insert(0, str(Path(__file__).parent))
topical = import_module("catalogue").topical
sys.path.pop(0)

PROFILE = topical(experts=8, top_k=2, layers=2, tokens=240)


@pytest.mark.parametrize("attention", ["dp", "tp"])
@pytest.mark.parametrize(
    ("extra_slots", "replica_choice"), [(0, None), (1, "static"), (1, "cover"), (2, "static"), (2, "cover")]
)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_no_gap_is_left(ranks: int, extra_slots: int, replica_choice: Any, attention: Any) -> None:
    # On eight ranks with an expert each no cap can be kept.
    plan = solve(
        PROFILE, ranks, attention=attention, extra_slots=extra_slots, replica_choice=replica_choice, max_imbalance=1.5,
        best_effort=True,
    )  # fmt: skip
    assert plan.objective is not None
    assert plan.objective > 0
    assert plan.gap == pytest.approx(0.0, abs=1e-9), f"{plan.objective:.4f} copies per token, {plan.bound:.4f} proven"


@pytest.mark.parametrize("attention", ["dp", "tp"])
@pytest.mark.parametrize("extra_slots", [1, 2])
def test_no_gap_is_left_at_a_tight_cap_on_eight_ranks(extra_slots: int, attention: Any) -> None:
    # The default cap: a rank may be 5 % above the mean.
    plan = solve(PROFILE, 8, attention=attention, extra_slots=extra_slots, replica_choice="cover", best_effort=True)
    assert plan.objective is not None
    assert plan.gap == pytest.approx(0.0, abs=1e-9), f"{plan.objective:.4f} copies per token, {plan.bound:.4f} proven"
    # By the rules themselves.
    metrics = measure_plan(plan, PROFILE.require_sample("this test"))
    assert max(layer.load_imbalance for layer in metrics) <= 1.05 + 1e-6
