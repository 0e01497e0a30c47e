"""The Python example, from a trace to a page."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe import PlacementPlan, RoutingProfile

SCRIPT = Path(__file__).parents[3] / "examples/python_api/place_experts.py"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty requests of 20 tokens; a request keeps to four of eight experts that are no neighbours."""
    rng = np.random.default_rng(0)
    topics = np.array([[0, 2, 4, 6], [1, 3, 5, 7]])[np.arange(40).repeat(20) % 2]
    order = rng.random((800, 2, 4)).argsort(axis=-1)[..., :2]
    expert_ids = np.take_along_axis(topics[:, None].repeat(2, axis=1), order, axis=-1).astype(np.uint8)
    arrays: dict[str, Any] = {
        "expert_ids": expert_ids,
        "num_experts": np.int64(8),
        "request_ids": np.arange(40, dtype=np.int32).repeat(20),
        "token_ids": np.arange(40, dtype=np.int32).repeat(20) % 2,
        "vocab_size": np.int64(2),
    }
    np.savez(tmp_path / "trace.npz", **arrays)
    return tmp_path / "trace.npz"


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)


def test_a_trace_becomes_a_plan_and_a_page(trace: Path, tmp_path: Path) -> None:
    done = run(trace, "--ep-size", 2, "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    copies = {
        name: float(line.split()[-2])
        for line in done.stdout.splitlines()
        for name in ("the plan", "linear")
        if name in line[:14]
    }
    assert 0 < copies["the plan"] < 0.7 * copies["linear"]
    plan, heldout = (
        PlacementPlan.load(tmp_path / "out/experts.plan"),
        RoutingProfile.load(tmp_path / "out/heldout.profile"),
    )
    assert plan.profile_fingerprint != heldout.fingerprint
    assert heldout.num_tokens == 240
    assert "240 held-out tokens" in done.stdout
    assert (tmp_path / "out/report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_mistake_is_one_sentence(trace: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", expert_ids=np.zeros((3, 1, 1), dtype=np.uint8), num_experts=np.int64(2))
    for words, message in (
        ((tmp_path / "missing.npz",), "missing.npz cannot be read as an npz trace"),
        ((tmp_path / "bare.npz",), "bare.npz has no request_ids, so no requests can be held out"),
        ((trace, "--ep-size", 100), "100"),
    ):
        done = run(*words, "--output", tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert "is there already" in run(trace, "--output", tmp_path).stderr
