"""`specmoe verify` prints what it proved and exits with 1 when anything is wrong."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import specmoe
from specmoe.runtime import compare_logits


def checks(printed):
    return {check["name"]: check for check in json.loads(printed)["checks"]}


def test_a_good_checkpoint_passes_and_its_logits_are_the_sources(command_line, tiny_checkpoint, compiled_tiny):
    code, out, _ = command_line("verify", compiled_tiny, "--against", tiny_checkpoint, "--json")
    assert code == 0
    assert json.loads(out)["passed"]
    assert "equal to the unmodified model's within" in checks(out)["logits"]["proven"]


def test_the_layout_hf_is_verified_through_transformers(command_line, tiny_checkpoint, random_plan, tmp_path):
    plan = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(2,), top_k=3, layer_ids=(0, 1))
    specmoe.reshard(tiny_checkpoint, plan, tmp_path / "out", layout="hf")
    code, out, _ = command_line("verify", tmp_path / "out", "--against", tiny_checkpoint, "--json")
    assert code == 0
    assert "equal to the unmodified model's within" in checks(out)["logits"]["proven"]


def test_the_table_names_every_check(command_line, compiled_tiny):
    code, out, _ = command_line("verify", compiled_tiny)
    assert code == 0
    assert "hashes" in out
    assert "FAILED" not in out
    assert out.strip().splitlines()[-1] == "4 of 4 checks passed"


def test_an_altered_file_fails_with_exit_code_1(command_line, compiled_tiny, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(compiled_tiny, folder)
    rank_file = folder / "experts-rank-00001-of-00002.safetensors"
    rank_file.write_bytes(rank_file.read_bytes()[:-1] + b"\x01")
    code, out, _ = command_line("verify", folder)
    assert code == 1
    assert "FAILED" in out


def test_the_source_may_be_a_name_on_the_hub(command_line, tiny_checkpoint, compiled_tiny, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(tiny_checkpoint))
    code, out, _ = command_line("verify", compiled_tiny, "--against", "someone/model", "--json")
    assert code == 0
    assert checks(out)["logits"]["passed"]


def test_logits_that_differ_fail(tiny_checkpoint, compiled_tiny, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    weights = load_file(other / "model.safetensors")
    gate = "model.layers.1.mlp.gate.weight"
    weights[gate] = weights[gate].flip(0).contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    check = compare_logits.compare_logits(compiled_tiny, other)
    assert not check.passed
    assert "differ from the unmodified model's" in check.problems[0]


def test_nan_logits_fail(tiny_checkpoint, compiled_tiny, monkeypatch):
    monkeypatch.setattr(compare_logits, "_logits", lambda _model: torch.full((1, 1, 2), float("nan")))
    assert not compare_logits.compare_logits(compiled_tiny, tiny_checkpoint).passed


def test_a_model_that_does_not_fit_in_memory_is_said_not_to_be_compared(tiny_checkpoint, compiled_tiny, monkeypatch):
    monkeypatch.setattr(compare_logits, "_available_bytes", lambda: 1000.0)
    check = compare_logits.compare_logits(compiled_tiny, tiny_checkpoint)
    assert (check.result, check.passed, check.proven) == ("skipped", False, "")
    assert check.skipped.startswith("not compared: the model needs")


def test_logits_that_were_not_compared_are_skipped_and_not_passed(
    command_line, tiny_checkpoint, compiled_tiny, monkeypatch
):
    monkeypatch.setattr(compare_logits, "_available_bytes", lambda: 1000.0)
    code, out, _ = command_line("verify", compiled_tiny, "--against", tiny_checkpoint, "--json")
    assert code == 0
    assert json.loads(out)["passed"]
    assert json.loads(out)["skipped"] == ["logits"]
    assert (checks(out)["logits"]["result"], checks(out)["logits"]["passed"]) == ("skipped", False)
    code, out, _ = command_line("verify", compiled_tiny, "--against", tiny_checkpoint)
    assert code == 0
    assert "not compared: the model needs" in out
    assert out.strip().splitlines()[-1].endswith("checks passed, 1 SKIPPED (logits)")


def test_a_source_whose_configuration_cannot_be_read_fails_in_one_sentence(tiny_checkpoint, compiled_tiny, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    check = compare_logits.compare_logits(compiled_tiny, other)
    assert check.result == "failed"
    assert "config that transformers cannot read" in check.problems[0]


def test_a_folder_that_is_no_compiled_checkpoint_is_one_sentence(command_line, tiny_checkpoint):
    code, out, err = command_line("verify", tiny_checkpoint)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "is not a compiled checkpoint" in err


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_checking_the_files_alone_loads_no_torch(compiled_tiny, module):
    script = f"import specmoe, sys; specmoe.verify({str(compiled_tiny)!r}); print({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
