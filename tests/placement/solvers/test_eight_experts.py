"""Eight experts, two a token, as in Mixtral: every plan is the best for its homes, and `solve` proves it."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

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
