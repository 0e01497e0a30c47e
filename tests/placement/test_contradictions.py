"""What cannot be: named, with how much is missing, and with `best_effort` the best that can."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.errors import ArtifactError, InfeasibleError, UsageError
from specmoe.placement.check import check_plan
from specmoe.placement.solve import solve
from specmoe.placement.topology import Topology

sys.path.insert(0, str(Path(__file__).parent / "solvers"))
catalogue = importlib.import_module("catalogue")
sys.path.pop(0)

SLOW_RANK = Topology(ranks_per_node=(2,), relative_speed=(1.0, 0.1))
PLAIN = catalogue.topical()


@pytest.mark.parametrize(
    ("profile", "machine", "options", "message"),
    [
        (
            catalogue.topical(scale=catalogue.HOT),
            Topology.single_node(4),
            {},
            r"layer 0: the best placement found has 1\.975 times the mean load on its heaviest rank, 0\.925 above the "
            r"cap of 1\.05; no placement has less than 1\.975: expert 3 with the 1 coldest experts has that; give "
            r"--max-imbalance 1\.98, or --extra-slots, or take it with --best-effort",
        ),
        (PLAIN, SLOW_RANK, {}, r"rank 1 of relative speed 0\.1 must hold 4 experts and has that with the coldest"),
        (
            PLAIN,
            Topology.single_node(2),
            {"group_limited": True, "expert_groups": 2, "max_imbalance": 1.001},
            r"the best placement found with expert groups kept whole has .* give --max-imbalance 1\.\d+, or take it",
        ),
        (
            PLAIN,
            Topology.single_node(4),
            {"max_imbalance": 1.0, "method": "cluster"},
            r"0\.083 above the cap of 1; no placement has less than 1\.083: expert 7 with the 1 coldest",
        ),
        (
            PLAIN,
            Topology.single_node(4),
            {"max_imbalance": 1.0, "method": "ilp", "time_limit": 30.0},
            r"found within the time limit has 1\.083",
        ),
    ],
    ids=["hot expert", "slow rank", "expert groups", "cluster", "ilp"],
)
def test_a_cap_that_cannot_be_kept_is_named_with_what_is_in_its_way(
    profile: Any, machine: Topology, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InfeasibleError, match=message):
        solve(profile, machine, bound_seconds=0, **options)
    plan = solve(profile, machine, bound_seconds=0, best_effort=True, **options)
    check_plan(plan, profile, extra_slots=0).require_legal()


@pytest.mark.parametrize(
    ("machine", "options", "message"),
    [
        (Topology(ranks_per_node=(2,), slots=(3, 4)), {}, "7 slots in all, at least 8"),
        (Topology(ranks_per_node=(2,), slots=(4, 4)), {"extra_slots": 5}, "a rank has 9 slots, at most 8"),
        (Topology.single_node(9), {}, r"ep_size is 9, at most one rank per expert \(8\)"),
        (Topology.single_node(3), {"group_limited": True, "expert_groups": 4}, "9 slots for 8 experts are 1 too many"),
        (Topology.single_node(2), {"group_limited": True, "expert_groups": 3}, "2 are left over"),
        (Topology.single_node(2), {"group_limited": True, "expert_groups": 4, "method": "eplb"}, "does not keep"),
        (
            Topology(ranks_per_node=(2,), slots=(5, 3)),
            {"group_limited": True, "expert_groups": 4},
            r"groups of 2 experts do not fit ranks of \[3, 5\] slots",
        ),
        (Topology.single_node(2), {"seed": 1 << 31}, "seed is 2147483648, 0 to 2147483647"),
    ],
)
def test_a_machine_that_does_not_fit_is_refused_before_any_search(
    machine: Topology, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        solve(PLAIN, machine, **options)


@pytest.mark.parametrize("method", ["auto", "cluster", "ilp", "eplb", "linear"])
def test_a_profile_that_saw_no_token_is_refused(method: str) -> None:
    nothing = replace(catalogue.counts_only(PLAIN), expert_counts=np.zeros_like(PLAIN.expert_counts), num_tokens=0)
    with pytest.raises(ArtifactError, match="has seen no token"):
        solve(nothing, 2, method=method)


def test_counts_with_an_empty_sample_are_solved_as_counts_alone() -> None:
    empty = replace(
        PLAIN, sample=replace(PLAIN.sample, expert_ids=PLAIN.sample.expert_ids[:0], token_ids=None, request_ids=None)
    )
    for method in ("auto", "eplb"):
        plan = solve(empty, 2, method=method)
        assert plan.objective is None
        assert plan.predicted["profile"]["load_imbalance"] >= 1.0
