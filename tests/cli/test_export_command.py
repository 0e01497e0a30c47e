"""`specmoe export` on the command line."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from specmoe.placement.plan import PlacementPlan


@pytest.fixture
def plan(random_plan) -> PlacementPlan:
    """A plan for a model of 8 experts and 2 layers, with replicas."""
    rng = np.random.default_rng(0)
    return random_plan(rng, num_experts=8, ranks_per_node=(2,), top_k=3, extra_slots=1, layer_ids=(0, 1))


@pytest.fixture
def plan_file(plan, tmp_path):
    plan.save(tmp_path / "experts.plan")
    return tmp_path / "experts.plan"


def test_every_engine_of_the_table_can_be_asked_for() -> None:
    from specmoe.cli.commands.export_command import ENGINE_NAMES
    from specmoe.placement.export.engines import ENGINES

    assert tuple(ENGINES) == ENGINE_NAMES


def test_the_layers_come_from_the_checkpoint(command_line, plan, plan_file, tiny_checkpoint, tmp_path) -> None:
    out = tmp_path / "map.json"
    code, printed, err = command_line("export", plan_file, "--to", "sglang", "-o", out, "--model", tiny_checkpoint)
    assert (code, err) == (0, "")
    assert json.loads(out.read_text()) == {"physical_to_logical_map": plan.physical_to_logical.tolist()}
    assert "--ep-num-redundant-experts 2" in printed
    assert "not carried over: dispatch_slot" in printed
    assert printed.endswith(f"wrote {out} and {out}.specmoe.json\n")


def test_the_json_is_the_sidecar(command_line, plan_file, tmp_path) -> None:
    out = tmp_path / "map.yaml"
    code, printed, err = command_line("export", plan_file, "--to", "trtllm", "-o", out, "--json")
    assert (code, err) == (0, "")
    assert json.loads(printed) == json.loads((tmp_path / "map.yaml.specmoe.json").read_text())


def test_sglang_without_the_number_of_layers_is_a_wrong_command_line(command_line, plan_file, tmp_path) -> None:
    code, printed, err = command_line("export", plan_file, "--to", "sglang", "-o", tmp_path / "map.json")
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert "--num-layers N" in err
    assert not (tmp_path / "map.json").exists()


def test_a_number_of_layers_that_the_checkpoint_contradicts_is_refused(
    command_line, plan_file, tiny_checkpoint, tmp_path
) -> None:
    arguments = ("--to", "sglang", "-o", tmp_path / "map.json", "--model", tiny_checkpoint, "--num-layers", 3)
    code, _, err = command_line("export", plan_file, *arguments)
    assert code == 2
    assert "num_layers is 3" in err


@pytest.mark.parametrize("wrong", ["experts", "fingerprint"])
def test_a_plan_for_another_model_is_refused(command_line, plan, random_plan, tiny_checkpoint, tmp_path, wrong) -> None:
    if wrong == "experts":
        plan = random_plan(np.random.default_rng(0), num_experts=4, ranks_per_node=(2,), top_k=3, layer_ids=(0, 1))
    else:
        plan = replace(plan, model_fingerprint="0" * 64)
    plan.save(tmp_path / "other.plan")
    arguments = ("--to", "trtllm", "-o", tmp_path / "map.yaml", "--model", tiny_checkpoint)
    code, _, err = command_line("export", tmp_path / "other.plan", *arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert "the plan is for another model" in err
    assert not (tmp_path / "map.yaml").exists()


def test_an_existing_file_is_kept_unless_forced(command_line, plan_file, tmp_path) -> None:
    arguments = ("export", plan_file, "--to", "json", "-o", tmp_path / "map.json")
    (tmp_path / "map.json").write_text("mine")
    code, _, err = command_line(*arguments)
    assert code == 1
    assert "exists already" in err
    assert (tmp_path / "map.json").read_text() == "mine"
    assert command_line(*arguments, "--force")[0] == 0
    assert "it is read for" in command_line("export", plan_file, "--to", "json", "-o", plan_file, "--force")[2]


def test_a_file_that_is_no_plan_is_one_sentence(command_line, tmp_path) -> None:
    (tmp_path / "no.plan").write_text("no")
    code, printed, err = command_line("export", tmp_path / "no.plan", "--to", "json", "-o", tmp_path / "map.json")
    assert (code, printed, err.count("\n")) == (1, "", 1)


def test_exporting_loads_neither_torch_nor_transformers(plan_file, tmp_path) -> None:
    code = (
        "import sys; from specmoe.cli.main import cli; "
        "cli(sys.argv[1:], standalone_mode=False); "
        "print(*{'torch', 'transformers'} & set(sys.modules), 'loaded')"
    )
    arguments = ["export", str(plan_file), "--to", "sglang", "-o", str(tmp_path / "m.json"), "--num-layers", "2"]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1].strip() == "loaded"
