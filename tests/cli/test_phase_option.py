"""`--phase`: solve and evaluate on prefill or decode alone, as if the profile had been of that phase."""

import json

import numpy as np
import pytest

from specmoe.cli.phase_option import PHASES
from specmoe.profiler import phase_counts
from specmoe.profiler.phase_of_profile import profile_of_phase
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_recorder import RoutingRecorder

L, E, K = 2, 8, 2


@pytest.fixture
def profile_path(tmp_path):
    """Prompts use even experts with even ones and odd with odd; decode uses the lower half and the upper half."""
    rng = np.random.default_rng(0)
    recorder = RoutingRecorder(
        layer_ids=range(L),
        num_logical_experts=E,
        top_k=K,
        sample_tokens=10**6,
        seed=0,
        domains=["text"],
        keeps_phases=True,
    )
    groups = {False: np.array([[0, 2, 4, 6], [1, 3, 5, 7]]), True: np.array([[0, 1, 2, 3], [4, 5, 6, 7]])}
    for index in range(60):
        rows = [groups[at >= 20][rng.integers(2)] for at in range(40)]
        ids = np.stack([[rng.permutation(row)[:K] for _ in range(L)] for row in rows]).astype(np.uint8)
        tokens = rng.integers(0, 50, 40).astype(np.int32)
        request = Request(index=index, domain_id=0, token_ids=tokens, num_generated=20)
        recorder.add([request], ids, np.full(ids.shape, 0.5, dtype=np.float16), np.array([True]))
    path = tmp_path / "routing.profile"
    recorder.finish(vocab_size=50, num_expert_groups=1, model_fingerprint="m", source="s").save(path)
    return path


def test_a_plan_of_one_phase_is_better_there_and_worse_on_the_other(command_line, profile_path, tmp_path) -> None:
    for phase in ("prefill", "decode"):
        words = ("-o", tmp_path / phase, "--ep-size", 2, "--phase", phase, "--max-imbalance", 1.3)
        code, _, err = command_line("solve", profile_path, *words)
        assert code == 0, err
    remote = {}
    for phase in ("prefill", "decode"):
        plans = [tmp_path / "prefill", tmp_path / "decode"]
        code, out, _ = command_line("evaluate", *plans, "--profile", profile_path, "--phase", phase, "--json")
        assert code == 0
        report = json.loads(out)
        assert report["trace"]["num_tokens"] == 60 * 20
        remote[phase] = [result["mean"]["remote_copies_per_token"] for result in report["results"][:2]]
    assert remote["prefill"][0] < remote["prefill"][1] - 0.1
    assert remote["decode"][1] < remote["decode"][0] - 0.1


def test_a_plan_knows_the_profile_of_its_phase(command_line, profile_path, tmp_path) -> None:
    from specmoe.placement.plan import PlacementPlan

    command_line("solve", profile_path, "-o", tmp_path / "plan", "--ep-size", 2, "--phase", "decode")
    decode = profile_of_phase(RoutingProfile.load(profile_path), "decode")
    assert PlacementPlan.load(tmp_path / "plan").profile_fingerprint == decode.fingerprint


def test_a_profile_without_phases_says_how_to_get_them(command_line, tmp_path) -> None:
    ids = np.array([[[0, 1]], [[2, 0]], [[0, 3]]], dtype=np.uint8)
    np.savez(tmp_path / "trace.npz", expert_ids=ids, num_experts=4)
    command_line("import", tmp_path / "trace.npz", "--from", "npz", "-o", tmp_path / "p")
    code, _, err = command_line("solve", tmp_path / "p", "-o", tmp_path / "plan", "--ep-size", 2, "--phase", "decode")
    assert code == 1
    assert "--generate N" in err


def test_the_choices_are_those_of_the_profiler() -> None:
    assert phase_counts.PHASES == PHASES
