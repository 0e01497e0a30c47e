"""Fused experts that are published transposed are turned in rank files, where nothing may be converted on loading."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specmoe.checkpoint import open_checkpoint
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.verify_files import verify_files
from specmoe.safetensors_header import read_header

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture
def plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))


@pytest.fixture
def fused(tmp_path, make_checkpoint, recipes) -> Callable[..., Path]:
    """`fused(gate_up, down)`: experts of hidden size 4 with tensors of these dtypes and shapes, and more as given."""

    def make(gate_up, down, **more) -> Path:
        tensors = {"gate.weight": ("BF16", (8, 4)), "experts.gate_up_proj": gate_up, "experts.down_proj": down, **more}
        recipe = replace(recipes["mixtral"], model_type="qwen3_vl_moe", prefix="model.layers.{layer}.mlp.")
        return make_checkpoint(tmp_path / "m", replace(recipe, tensors=tensors))

    return make


def contents(path: Path, name: str) -> bytes:
    entry = read_header(path)[name]
    return path.read_bytes()[entry.begin : entry.end]


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", np.uint16), ("F32", np.uint32)])
def test_every_experts_matrix_is_turned(tmp_path, fused, plan, dtype, kind) -> None:
    source = fused((dtype, (8, 4, 12)), (dtype, (8, 6, 4)))
    manifest = reshard(source, plan, tmp_path / "out")
    path = tmp_path / "out" / manifest.rank_file(1)
    assert read_header(path)[GATE_UP].shape == (2, 12, 4)
    before = np.frombuffer(contents(open_checkpoint(source).tensors[GATE_UP].file, GATE_UP), kind).reshape(8, 4, 12)
    after = np.frombuffer(contents(path, GATE_UP), kind).reshape(2, 12, 4)
    assert np.array_equal(after, before[ROWS[0][2:4]].transpose(0, 2, 1))
    assert verify_files(tmp_path / "out", source).passed


def test_what_lies_as_in_memory_is_not_turned(tmp_path, fused, plan) -> None:
    source = fused(("BF16", (8, 12, 4)), ("BF16", (8, 4, 6)))
    manifest = reshard(source, plan, tmp_path / "out")
    path = tmp_path / "out" / manifest.rank_file(1)
    before = contents(open_checkpoint(source).tensors[GATE_UP].file, GATE_UP)
    step = len(before) // 8
    assert contents(path, GATE_UP) == b"".join(before[e * step : (e + 1) * step] for e in ROWS[0][2:4])
    assert verify_files(tmp_path / "out", source).passed


def test_quantized_experts_keep_their_orientation_and_their_scales(tmp_path, fused, plan) -> None:
    scales = {"experts.gate_up_proj_scale_inv": ("F32", (8, 1, 1)), "experts.down_proj_scale_inv": ("F32", (8, 1, 1))}
    source = fused(("F8_E4M3", (8, 4, 12)), ("F8_E4M3", (8, 6, 4)), **scales)
    manifest = reshard(source, plan, tmp_path / "out")
    assert manifest.expert_format == "stacked"
    assert read_header(tmp_path / "out" / manifest.rank_file(0))[GATE_UP].shape == (2, 4, 12)
    assert verify_files(tmp_path / "out", source).passed


def test_verify_finds_an_expert_that_was_not_turned(tmp_path, fused, plan) -> None:
    source = fused(("BF16", (8, 4, 12)), ("BF16", (8, 6, 4)))
    manifest = reshard(source, plan, tmp_path / "out")
    path = tmp_path / "out" / manifest.rank_file(0)
    before = contents(open_checkpoint(source).tensors[GATE_UP].file, GATE_UP)
    content, entry = bytearray(path.read_bytes()), read_header(path)[GATE_UP]
    step = len(before) // 8
    content[entry.begin : entry.begin + step] = before[ROWS[0][0] * step : (ROWS[0][0] + 1) * step]
    path.write_bytes(content)
    failed = {check.name for check in verify_files(tmp_path / "out", source).checks if not check.passed}
    assert failed == {"hashes", "experts"}


def test_an_ordinary_checkpoint_is_not_turned(tmp_path, fused, plan) -> None:
    source = fused(("BF16", (8, 4, 12)), ("BF16", (8, 6, 4)))
    reshard(source, plan, tmp_path / "out", layout="hf")
    assert open_checkpoint(tmp_path / "out").tensors[GATE_UP].shape == (8, 4, 12)
    assert verify_files(tmp_path / "out", source).passed
