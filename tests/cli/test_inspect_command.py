"""`specmoe inspect`: every kind of file in words and numbers, a foreign one in one sentence."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from specmoe.placement.topology import Topology
from specmoe.profiler.domain_counts import DomainCounts
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


@pytest.fixture
def folder(random_plan, tmp_path: Path) -> Path:
    """`trace`, `counts`, `dp.plan` (2 ranks, replicas, a table), `nodes.plan` (no replicas, a bound), `nodes.json`."""
    rng = np.random.default_rng(0)
    ids = rng.random((40, 2, 8)).argsort(axis=-1)[..., :3].astype(np.uint8)
    counts = RoutingProfile(
        layer_ids=np.array([0, 1], dtype=np.int32),
        expert_counts=np.stack([np.bincount(ids[:, layer].ravel(), minlength=8) for layer in range(2)]),
        num_logical_experts=8,
        top_k=3,
        num_tokens=1040,
        source="a test\x1b[2J",
    )
    counts.save(tmp_path / "counts")
    replace(counts, seen_share=0.25, too_long_requests=3).save(tmp_path / "stopped")
    domains = DomainCounts(
        names=("chat", "code"),
        num_tokens=np.array([40, 1000]),
        expert_counts=np.stack([np.zeros_like(counts.expert_counts), counts.expert_counts]),
    )
    replace(counts, domains=domains).save(tmp_path / "domains")
    sample = RoutingSample(expert_ids=ids, token_ids=np.arange(40, dtype=np.int32))
    replace(counts, sample=sample, vocab_size=50).save(tmp_path / "trace")
    shape = {"num_experts": 8, "top_k": 3, "layer_ids": (0, 1)}
    plan = random_plan(rng, ranks_per_node=(2,), extra_slots=1, replica_choice="cover", **shape)
    table = np.zeros((50, 2), dtype=np.float16)
    traffic = np.full((2, 2, plan.num_physical_experts), 3 / plan.num_physical_experts, dtype=np.float32)
    predicted = {"held_out_objective": 0.75}
    replace(plan, token_affinity=table, expected_pairs=traffic, predicted=predicted).save(tmp_path / "dp.plan")
    nodes = replace(random_plan(rng, ranks_per_node=(2, 1), **shape), objective=1.5, bound=1.2)
    nodes.save(tmp_path / "nodes.plan")
    (tmp_path / "nodes.json").write_text(json.dumps(Topology(ranks_per_node=(2, 1)).to_json()))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "trace",
            ["a routing profile (specmoe.profile/1)", "2 MoE layers, 8 experts, top-3", "1,040 tokens", "40 tok"],
        ),
        ("counts", ["counts alone", "not counted"]),
        ("stopped", ["1,040 tokens; the run was stopped after 25 % of its corpus"]),
        ("domains", ["code: 1,000 tokens, chat: 40 tokens"]),
        ("dp.plan", ["a placement plan", "2 on one node", "10 in each layer, 2 of them replicas", "for 50 token ids"]),
        ("dp.plan", ["0.750 remote copies per token on other requests", "proven bound     none"]),
        ("dp.plan", ["traffic          by home rank and slot, divides capacity bounds"]),
        ("nodes.plan", ["traffic          not stated"]),
        ("nodes.plan", ["3 on 2 nodes (2 + 1)", "one for every expert", "1.200 remote copies per token, gap 25.0%"]),
        ("nodes.json", ["a topology", "3 on 2 nodes"]),
    ],
)
def test_a_file_is_explained(command_line, folder, name, expected) -> None:
    code, printed, err = command_line("inspect", folder / name)
    assert (code, err) == (0, "")
    for words in expected:
        assert words in printed


def test_what_a_file_says_cannot_steer_the_terminal(command_line, folder) -> None:
    printed = command_line("inspect", folder / "counts")[1]
    assert "a test\N{REPLACEMENT CHARACTER}[2J" in printed
    assert "\x1b" not in printed


def test_json_has_the_facts_by_name(command_line, folder) -> None:
    profile = json.loads(command_line("inspect", folder / "trace", "--json")[1])
    assert (profile["kind"], profile["num_tokens"], profile["num_sample_tokens"]) == ("routing profile", 1040, 40)
    assert profile["sample_has"] == ["token_ids"]
    plan = json.loads(command_line("inspect", folder / "dp.plan", "--json")[1])
    assert (plan["format"], plan["num_replicas"], plan["ep_size"]) == ("specmoe.plan/1", 2, 2)
    assert plan["token_table"] == {"name": "token_affinity", "num_token_ids": 50}


def test_the_tensors_are_not_read(command_line, folder) -> None:
    path = folder / "trace"
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        size = file.seek(0, 2)
        file.seek(8 + length)
        file.write(b"\xff" * (size - 8 - length))
    assert command_line("inspect", path)[0] == 0


def test_a_compiled_checkpoint_is_explained(command_line, compiled_tiny) -> None:
    code, printed, err = command_line("inspect", compiled_tiny)
    assert (code, err) == (0, "")
    for words in (
        "a compiled checkpoint",
        "ranks: a file for each rank",
        "experts fused",
        "all there",
        "2 on one node",
    ):
        assert words in printed
    assert command_line("inspect", compiled_tiny / "specmoe.json")[1].split(":", 1)[1] == printed.split(":", 1)[1]
    rank_file = compiled_tiny / "experts-rank-00001-of-00002.safetensors"
    assert "1 of 2 (counted from 0)" in command_line("inspect", rank_file)[1]


def test_missing_and_shortened_files_of_a_checkpoint_are_named(command_line, compiled_tiny, tmp_path) -> None:
    copy = shutil.copytree(compiled_tiny, tmp_path / "copy")
    (copy / "config.json").write_text("{}")
    (copy / "experts-rank-00001-of-00002.safetensors").unlink()
    facts = json.loads(command_line("inspect", copy, "--json")[1])
    assert facts["missing_or_of_wrong_size"] == ["config.json", "experts-rank-00001-of-00002.safetensors"]


def test_an_exported_placement_and_its_sidecar_are_explained(command_line, folder) -> None:
    out = folder / "map.json"
    assert command_line("export", folder / "dp.plan", "--to", "json", "-o", out)[0] == 0
    assert "a placement exported as JSON (specmoe.placement/1)" in command_line("inspect", out)[1]
    sidecar = command_line("inspect", folder / "map.json.specmoe.json")[1]
    assert "a description of an exported plan" in sidecar
    assert "token_affinity" in sidecar


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("hello, reader"), "is not a specmoe file: it is neither JSON nor safetensors"),
        (lambda path: path.write_text('{"a": 1}'), "this JSON file is none of specmoe's"),
        (lambda path: path.write_text('{"ranks_per_node": [0]}'), "positive whole numbers were expected"),
        (lambda path: path.write_text("{"), "is damaged: its JSON cannot be read"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and an archive"), "specmoe import makes a profile of one"),
        (lambda path: save_file({"a": np.zeros(2)}, path), "a safetensors file of 1 tensor that specmoe did not write"),
        (lambda path: save_file({"a": np.zeros(2)}, path, {"specmoe": '{"format":"x/9"}'}), "is of format 'x/9'"),
        (lambda path: save_file({"a": np.zeros(2)}, path, {"specmoe": "["}), "a damaged description"),
        (
            lambda path: save_file({"a": np.zeros(2)}, path, {"specmoe": '{"format":"specmoe.plan/1"}'}),
            "physical_to_logical is missing",
        ),
        (lambda path: path.mkdir(), "is a folder without specmoe.json"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "specmoe reshard compiles it"),
        (lambda path: path.touch(), "is not a specmoe file"),
        (os.mkfifo, "is neither a file nor a folder"),
        (lambda path: None, "No such file or directory"),
    ],
)
def test_a_foreign_or_damaged_file_is_one_sentence(command_line, tmp_path, make, message) -> None:
    make(tmp_path / "file")
    code, printed, err = command_line("inspect", tmp_path / "file")
    assert (code, printed, err.count("\n")) == (1, "", 1)
    assert message in err


def test_a_truncated_plan_is_told(command_line, folder) -> None:
    whole = (folder / "dp.plan").read_bytes()
    (folder / "dp.plan").write_bytes(whole[:-1])
    code, _, err = command_line("inspect", folder / "dp.plan")
    assert (code, err.count("\n")) == (1, 1)


def test_inspecting_loads_neither_torch_nor_transformers(folder) -> None:
    code = (
        "import sys; from specmoe.cli.main import cli; cli(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, "inspect", str(folder / "dp.plan")], check=True, capture_output=True)
