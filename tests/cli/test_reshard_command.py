"""`specmoe reshard` as a user runs it: what it prints, where, and its exit codes."""

import json
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import save_file

from specmoe.cli.main import main
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.verify_files import verify_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small Mixtral checkpoint of random weights in one file."""
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    block = "model.layers.0.block_sparse_moe"
    shapes = {f"{block}.gate.weight": (4, 8), "lm_head.weight": (16, 8)}
    for expert in range(4):
        shapes |= {f"{block}.experts.{expert}.{name}.weight": (6, 8) for name in ("w1", "w3")}
        shapes |= {f"{block}.experts.{expert}.w2.weight": (8, 6)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def plan_file(tmp_path: Path, random_plan) -> Path:
    plan: PlacementPlan = random_plan(np.random.default_rng(0), num_experts=4, ranks_per_node=(2,), top_k=2)
    plan.save(tmp_path / "experts.plan")
    return tmp_path / "experts.plan"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `specmoe reshard ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["specmoe", "reshard", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("layout", ["ranks", "hf"])
def test_it_compiles_and_says_what_to_do_next(monkeypatch, capsys, tmp_path, source, plan_file, layout) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, source, plan_file, "-o", out, "--layout", layout) == 0
    printed = capsys.readouterr()
    assert f"{out}: layout {layout}, 2 ranks" in printed.out
    assert f"specmoe verify {out}" in printed.out
    assert printed.err == ""
    assert verify_files(out, source).passed


def test_json_is_the_manifest(monkeypatch, capsys, tmp_path, source, plan_file) -> None:
    assert run(monkeypatch, source, plan_file, "-o", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "specmoe.json").read_text())


def test_a_dry_run_prints_the_layout_and_writes_nothing(monkeypatch, capsys, tmp_path, source, plan_file) -> None:
    assert run(monkeypatch, source, plan_file, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "experts-rank-00001-of-00002.safetensors" in printed
    assert "each rank reads" in printed
    assert "of weights as they are stored" in printed
    assert "no expert has a replica" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experts.plan", "model"]
    assert run(monkeypatch, source, plan_file, "--dry-run", "--json", "--layout", "hf") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["files"].keys() == {"model.safetensors"}
    assert summary["copied_files"] == ["config.json"]


def test_an_existing_output_needs_force(monkeypatch, capsys, tmp_path, source, plan_file) -> None:
    arguments = (source, plan_file, "-o", tmp_path / "out")
    assert run(monkeypatch, *arguments) == 0
    assert run(monkeypatch, *arguments) == 1
    assert capsys.readouterr().err == (
        f"specmoe: {tmp_path / 'out'} exists already; give another name or --force to replace it\n"
    )
    assert run(monkeypatch, *arguments, "--force", "--jobs", "1") == 0


def test_a_wrong_command_line_ends_with_2(monkeypatch, capsys, tmp_path, source, plan_file) -> None:
    assert run(monkeypatch, source, plan_file) == 2
    assert "give -o OUT" in capsys.readouterr().err
    assert run(monkeypatch, source, plan_file, "-o", tmp_path / "out", "--layout", "tar") == 2
    assert run(monkeypatch, source, plan_file, "-o", tmp_path / "out", "--jobs", "0") == 2


@pytest.mark.parametrize(("broken", "message"), [("model", "is not a folder"), ("plan", "is not a file")])
def test_an_input_that_is_not_there_ends_with_1(
    monkeypatch, capsys, tmp_path, source, plan_file, broken, message
) -> None:
    absent = tmp_path / "absent"
    model, plan = (absent, plan_file) if broken == "model" else (source, absent)
    assert run(monkeypatch, model, plan, "-o", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_name_on_the_hub_is_downloaded_but_not_for_an_output_that_exists(
    monkeypatch, capsys, tmp_path, source, plan_file
) -> None:
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(source))
    (tmp_path / "there").mkdir()
    assert run(monkeypatch, "someone/model", plan_file, "-o", tmp_path / "there") == 1
    assert asked == []
    assert run(monkeypatch, "someone/model", plan_file, "-o", tmp_path / "out") == 0
    assert asked == ["someone/model"]
    assert verify_files(tmp_path / "out", source).passed
