"""`specmoe report` on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


@pytest.fixture
def folder(random_plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `trace`, `counts` and `experts.plan`."""
    rng = np.random.default_rng(0)
    ids = rng.random((40, 2, 8)).argsort(axis=-1)[..., :3].astype(np.uint8)
    shape = {"layer_ids": np.array([0, 1], dtype=np.int32), "num_logical_experts": 8, "top_k": 3, "num_tokens": 40}
    counts = np.stack([np.bincount(ids[:, layer].ravel(), minlength=8) for layer in range(2)])
    RoutingProfile(expert_counts=counts, **shape).save(tmp_path / "counts")
    RoutingProfile(expert_counts=counts, sample=RoutingSample(expert_ids=ids), **shape).save(tmp_path / "trace")
    plan: PlacementPlan = random_plan(rng, num_experts=8, ranks_per_node=(2,), top_k=3, layer_ids=(0, 1))
    plan.save(tmp_path / "experts.plan")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_page_and_plots_are_written(command_line, folder) -> None:
    arguments = ("--profile", "trace", "-o", "page.html", "--png", "plots", "--since", "trace")
    code, printed, err = command_line("report", "experts.plan", *arguments)
    assert (code, err) == (0, "")
    assert printed.startswith("On 40 tokens experts.plan sends ")
    assert "plots/traffic.png, page.html\n" in printed
    assert (folder / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert (folder / "plots" / "remote-copies.png").is_file()


def test_json_has_what_the_page_says_and_every_metric(command_line, folder) -> None:
    arguments = ("--profile", "trace", "-o", "page.html", "--since", "trace", "--json")
    code, printed, _ = command_line("report", "experts.plan", *arguments)
    found = json.loads(printed)
    assert (code, found["page"], found["plots"]) == (0, "page.html", [])
    assert found["headline"].startswith("On 40 tokens experts.plan sends ")
    assert [result["name"] for result in found["results"]] == ["experts.plan", "linear", "round_robin", "eplb"]
    evaluated = json.loads(command_line("evaluate", "experts.plan", "--profile", "trace", "--json")[1])
    assert {name: found[name] for name in ("trace", "results")} == evaluated
    assert found["drift"][0]["plan"]["name"]


def test_an_existing_page_is_kept_unless_forced(command_line, folder) -> None:
    (folder / "page.html").write_text("mine")
    arguments = ("report", "experts.plan", "--profile", "trace", "-o", "page.html")
    code, _, err = command_line(*arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert (folder / "page.html").read_text() == "mine"
    assert command_line(*arguments, "--force")[0] == 0
    assert (folder / "page.html").read_text() != "mine"


def test_a_plan_whose_name_is_no_text_has_a_page(command_line, folder) -> None:
    (folder / "plan\udcff").write_bytes((folder / "experts.plan").read_bytes())
    assert command_line("report", "plan\udcff", "--profile", "trace", "-o", "page.html")[0] == 0
    assert "plan?" in (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["missing.plan", "--profile", "trace"], 1, "missing.plan is not a file"),
        (["experts.plan", "--profile", "counts"], 1, "needs the routing of single tokens"),
        (["experts.plan", "--profile", "experts.plan"], 1, "'specmoe.profile/1' was expected"),
        (["experts.plan", "experts.plan", "--profile", "trace"], 2, "was given twice; give each once"),
        (["experts.plan", "--profile", "trace", "--capacity", "x"], 2, "--capacity is 'x'"),
        (["experts.plan", "--profile", "trace", "--since", "counts"], 1, "needs the routing of single tokens"),
        (
            ["experts.plan", "--profile", "trace", "--phase", "decode"],
            1,
            "needs a profile that keeps prefill and decode",
        ),
        (["experts.plan", "--profile", "trace", "--force", "-o", "trace"], 1, "it is read for this very output"),
        (["experts.plan"], 2, "Missing option '--profile'"),
        (["--profile", "trace"], 2, "Missing argument 'PLAN...'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(command_line, folder, arguments, exit_code, message) -> None:
    code, printed, err = command_line("report", "-o", "page.html", *arguments)
    assert (code, printed) == (exit_code, "")
    assert message in err
    assert "Traceback" not in err
    assert not (folder / "page.html").exists()


def test_reporting_loads_neither_torch_nor_transformers(folder) -> None:
    code = (
        "import sys; from specmoe.cli.main import cli; cli(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    arguments = ["report", "experts.plan", "--profile", "trace", "-o", "page.html"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, cwd=folder)
