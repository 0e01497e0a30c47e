"""The script for a machine with a GPU, dry: every step runs through the interpreter, and a failure stops no other."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/on_gpu.py"


@pytest.fixture
def on_gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("on_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "on_gpu", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
def test_every_step_works_but_for_the_device(tmp_path):
    results = tmp_path / "results"
    run = subprocess.run([sys.executable, SCRIPT, results, "--dry-run"], capture_output=True, text=True, check=False)
    summary = json.loads((results / "summary.json").read_text())
    logs = "\n".join(log.read_text()[-2000:] for log in results.glob("*.log"))
    assert {step["name"]: step["status"] for step in summary["steps"] if step["status"] != "left out"} == dict.fromkeys(
        ("device", "small-case", "tests", "kernels", "static-block", "static-model", "overhead", "other-tests"),
        "passed",
    ), logs
    assert run.returncode == 0
    record = json.loads((results / "kernels-dry-run.json").read_text())
    assert {entry["implementation"] for entry in record["shapes"][0]["operations"]} >= {"specmoe", "transformers"}
    assert "outside the grouped product" in (results / "kernels-dry-run.md").read_text()


def test_a_step_that_fails_or_hangs_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch, on_gpu):
    def steps(results, *, dry_run):
        for name, code in (("bad", "exit(3)"), ("slow", "import time; time.sleep(60)"), ("good", "print('fine')")):
            yield on_gpu.Step(name=name, command=(sys.executable, "-c", code), limit_seconds=1)
        yield on_gpu.Step(name="absent", command=None, limit_seconds=0, why_not="not here")

    monkeypatch.setattr(on_gpu, "steps", steps)
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", str(tmp_path)])
    assert on_gpu.main() == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [step["status"] for step in summary["steps"]][:2] == ["failed", "out of time"]
    assert [(step["status"], step["detail"]) for step in summary["steps"]][2:] == [
        ("passed", "fine"), ("left out", "not here")
    ]  # fmt: skip


def test_all_steps_together_take_less_than_nine_minutes(tmp_path, on_gpu, monkeypatch):
    monkeypatch.setattr(on_gpu.shutil, "which", lambda name: name)
    assert sum(step.limit_seconds for step in on_gpu.steps(tmp_path, dry_run=False)) < 9 * 60
