"""Several processes (Gloo) running one model: lossless with any share of the work, and failing together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("many_processes.py")
FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss"]


@pytest.fixture(scope="module")
def findings(compiled_model, tmp_path_factory):
    """What every process of every run reported: `findings[run][process]`, a list of objects."""
    folder = tmp_path_factory.mktemp("runs")
    made = {family: compiled_model(family) for family in FAMILIES}
    altered = folder / "altered"
    shutil.copytree(made["olmoe"].compiled["static"], altered)
    with (altered / "experts-rank-00002-of-00004.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\x7f")
    settings = {
        "folder": str(folder),
        "models": {
            "four": {family: [str(m.source), str(m.compiled["cover"])] for family, m in made.items()},
            "two": {family: [str(m.source), str(m.compiled["static"])] for family, m in made.items()},
        },
        "any": str(made["olmoe"].compiled["cover"]),
        "altered": str(altered),
        "two_plans": [str(made["olmoe"].compiled[choice]) for choice in ("static", "cover")],
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(SCRIPT), str(folder / "settings.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    reports = {}
    for path in folder.glob("*-[0-9].json"):
        run, process = path.stem.split("-")
        reports.setdefault(run, {})[int(process)] = json.loads(path.read_text())
    return reports


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("run", "world_size"), [("two", 2), ("four", 4)])
def test_every_process_gets_the_logits_and_tokens_of_the_unmodified_model(findings, run, world_size, family):
    for process in range(world_size):
        (found,) = (item for item in findings[run][process] if item.get("family") == family)
        if found["requests"]:
            assert found["error"] < 2e-6
            assert found["same_tokens"]
        else:
            assert set(found["tokens"]) == {0}, "a process without requests only serves the others"


@pytest.mark.parametrize("run", ["two", "four"])
def test_prompts_are_served_over_all_processes_and_come_back_in_order_everywhere(findings, run):
    reports = findings[run]
    for number in range(len(FAMILIES)):
        first = reports[0][number]
        assert all(report[number]["served"] == first["served"] for report in reports.values())
        assert set(first["served_by"]) == set(reports), "every process had prompts"
    two, four = findings["two"][0], findings["four"][0]
    assert [item["served"] for item in two] == [item["served"] for item in four]


def test_with_one_rank_per_process_every_remote_copy_is_a_row_on_the_wire(findings):
    assert all(item["wire_is_remote"] for report in findings["four"].values() for item in report)


REFUSALS = {
    "three": (3, "3 processes cannot share the checkpoint's 4 ranks; start 1, 2 or 4"),
    "altered": (4, "experts-rank-00002-of-00004.safetensors was altered since"),
    "plans": (2, "process 1 has plan "),
    "steps": (2, "every process must run the same number of forward passes"),
    "death": (3, "lost the others in MoE layer 0"),
}


@pytest.mark.parametrize(("run", "world_size", "message"), [(r, *v) for r, v in REFUSALS.items()], ids=REFUSALS.keys())
def test_all_processes_fail_together_with_one_sentence(findings, run, world_size, message):
    for process in range(world_size):
        (found,) = findings[run][process]
        assert "traceback" not in found, found["traceback"]
        assert found["refused"] is not None
        assert message in found["refused"]
