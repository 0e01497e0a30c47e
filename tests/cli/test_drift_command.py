"""The command prints figures and a verdict, and the same as JSON."""

import json

import numpy as np
import pytest

import specmoe
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(0)
    for name in ("old", "new"):
        expert_ids = rng.permuted(np.tile(np.arange(4, dtype=np.uint8), (200, 1, 1)), axis=2)[:, :, :2]
        RoutingProfile(
            layer_ids=np.array([3], dtype=np.int32),
            expert_counts=np.bincount(expert_ids.ravel(), minlength=4)[None].astype(np.int64),
            num_logical_experts=4,
            top_k=2,
            num_tokens=200,
            sample=RoutingSample(expert_ids=expert_ids, request_ids=np.arange(20, dtype=np.int32).repeat(10)),
        ).save(folder / f"{name}.profile")
    specmoe.solve(RoutingProfile.load(folder / "old.profile"), 2, best_effort=True).save(folder / "p.plan")
    return folder


def test_it_prints_distances_and_a_verdict(command_line, files):
    code, out, _ = command_line("drift", files / "old.profile", files / "new.profile")
    assert code == 0
    assert "by chance, at most" in out
    assert "\nkeep: " in out


def test_json_has_the_plan_before_and_after(command_line, files):
    plan = files / "p.plan"
    code, out, _ = command_line("drift", files / "old.profile", files / "new.profile", "--plan", plan, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["verdict"] in ("keep", "re-solve")
    assert found["plan"]["name"] == str(plan)
    assert found["plan"]["solved_anew"]["remote_copies_per_token"] > 0


def test_a_plan_in_place_of_a_profile_is_one_sentence(command_line, files):
    code, out, err = command_line("drift", files / "old.profile", files / "p.plan")
    assert (code, out) == (1, "")
    assert err.startswith("specmoe: ")
    assert err.count("\n") == 1
