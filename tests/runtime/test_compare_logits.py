"""Logits that cannot be compared are skipped, with the reason."""

import json
import shutil

import pytest

import specmoe
from specmoe.runtime.compare_logits import compare_logits

pytestmark = pytest.mark.usefixtures("quiet_transformers")


def test_a_model_unknown_to_transformers_is_verified_by_its_bytes_and_its_logits_are_skipped(compiled_model, tmp_path):
    made = compiled_model("deepseek_v3")
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(made.source, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "kimi_k2"}))
    specmoe.reshard(source, made.plans["static"], out)
    report = specmoe.verify(out, source)
    assert report.passed
    assert report.skipped == ("logits",)
    assert "no model of type 'kimi_k2'" in report.checks[-1].skipped


def test_a_source_that_lacks_a_tensor_is_not_filled_with_random_numbers(compiled_model, tmp_path):
    from safetensors.torch import load_file, save_file

    made = compiled_model("olmoe")
    source = tmp_path / "source"
    shutil.copytree(made.source, source)
    weights = load_file(source / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    check = compare_logits(made.compiled["static"], source)
    assert check.result == "failed"
    assert "lacks 1 tensors of the model, such as model.norm.weight" in check.problems[0]
