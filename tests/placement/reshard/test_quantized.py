"""Quantized checkpoints are moved by bytes: every suffix follows its expert, in both layouts, and none is merged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specmoe.checkpoint import open_checkpoint
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.verify_files import verify_files
from specmoe.safetensors_header import read_header

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
# Suffixes of one projection, [out, in] = [64, 128], as published checkpoints of each format have them.
FORMATS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "fp8 blocks": {"weight": ("F8_E4M3", (64, 128)), "weight_scale_inv": ("F32", (1, 1))},
    "fp8 per tensor": {"weight": ("F8_E4M3", (64, 128)), "weight_scale": ("BF16", ()), "input_scale": ("F32", (1,))},
    "compressed-tensors int4": {
        "weight_packed": ("I32", (64, 16)),
        "weight_scale": ("BF16", (64, 4)),
        "weight_zero_point": ("I32", (8, 4)),
        "weight_shape": ("I64", (2,)),
        "weight_g_idx": ("I32", (128,)),
    },
    "gptq": {
        "qweight": ("I32", (16, 64)),
        "qzeros": ("I32", (4, 8)),
        "scales": ("F16", (4, 64)),
        "g_idx": ("I32", (128,)),
    },
    "awq": {"qweight": ("I32", (128, 8)), "qzeros": ("I32", (4, 8)), "scales": ("F16", (4, 64))},
    "nvfp4": {
        "weight": ("U8", (64, 64)),
        "weight_scale": ("F8_E4M3", (64, 8)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
    },
    "compressed-tensors nvfp4": {
        "weight_packed": ("U8", (64, 64)),
        "weight_scale": ("F8_E4M3", (64, 8)),
        "weight_global_scale": ("F32", (1,)),
        "input_global_scale": ("F32", (1,)),
    },
    "packed 4-bit dtype": {"weight": ("F4", (64, 128)), "weight_scale": ("F8_E8M0", (64, 4))},
}


@pytest.fixture
def plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))


@pytest.fixture
def quantized(tmp_path: Path, make_checkpoint: Callable[..., Path], recipes: dict[str, Any]) -> Callable[[str], Path]:
    """`quantized(format)`: a DeepSeek-V3 checkpoint at `tmp_path / "m"` whose experts have that format's tensors."""

    def make(name: str) -> Path:
        recipe = recipes["deepseek_v3"]
        plain = {key: tensor for key, tensor in recipe.tensors.items() if "{e}" not in key}
        experts = {
            f"experts.{{e}}.{projection}.{suffix}": tensor
            for projection in ("gate_proj", "up_proj", "down_proj")
            for suffix, tensor in FORMATS[name].items()
        }
        config = {"num_experts_per_tok": 2, "n_group": 1}
        return make_checkpoint(tmp_path / "m", replace(recipe, tensors={**plain, **experts}, config=config))

    return make


def contents(folder: Path, name: str) -> bytes:
    entry = open_checkpoint(folder).tensors[name]
    return entry.file.read_bytes()[entry.begin : entry.end]


@pytest.mark.parametrize("name", FORMATS)
def test_every_suffix_is_stacked_by_slot_and_none_is_merged(tmp_path, quantized, plan, proven, name) -> None:
    source = quantized(name)
    manifest = reshard(source, plan, tmp_path / "out")
    assert manifest.expert_format == "stacked"
    path = tmp_path / "out" / manifest.rank_file(2)
    header, content = read_header(path), path.read_bytes()
    module = manifest.expert_modules[1]
    for projection in ("gate_proj", "up_proj", "down_proj"):
        for suffix, (dtype, shape) in FORMATS[name].items():
            entry = header[f"{module}.{projection}.{suffix}"]
            assert (entry.dtype, entry.shape) == (dtype, (2, *shape))
            assert content[entry.begin : entry.end] == b"".join(
                contents(source, f"model.layers.2.mlp.experts.{expert}.{projection}.{suffix}")
                for expert in ROWS[1][4:6]
            )
    assert verify_files(tmp_path / "out", source).passed
    proven("deepseek_v3", name, "ranks", f"bytes of {', '.join(FORMATS[name])}, slot by slot")


@pytest.mark.parametrize("name", FORMATS)
def test_every_suffix_is_renumbered_with_its_expert(tmp_path, quantized, plan, proven, name) -> None:
    source = quantized(name)
    reshard(source, plan, tmp_path / "out", layout="hf")
    for new, old in enumerate(ROWS[0]):
        for suffix in FORMATS[name]:
            before = contents(source, f"model.layers.1.mlp.experts.{old}.up_proj.{suffix}")
            assert contents(tmp_path / "out", f"model.layers.1.mlp.experts.{new}.up_proj.{suffix}") == before
    assert verify_files(tmp_path / "out", source).passed
    proven("deepseek_v3", name, "hf", f"bytes of {', '.join(FORMATS[name])}, renumbered")


def test_tensors_in_rank_files_are_aligned_to_their_element(tmp_path, quantized, plan) -> None:
    manifest = reshard(quantized("compressed-tensors int4"), plan, tmp_path / "out")
    sizes = {"I64": 8, "I32": 4, "BF16": 2}
    for entry in read_header(tmp_path / "out" / manifest.rank_file(0)).values():
        assert entry.begin % sizes[entry.dtype] == 0


def test_one_swapped_scale_is_found(tmp_path, quantized, plan) -> None:
    source = quantized("nvfp4")
    manifest = reshard(source, plan, tmp_path / "out")
    path = tmp_path / "out" / manifest.rank_file(0)
    entry = read_header(path)[f"{manifest.expert_modules[0]}.up_proj.weight_scale_2"]
    content = bytearray(path.read_bytes())
    scales = content[entry.begin : entry.end]
    content[entry.begin : entry.end] = scales[4:] + scales[:4]
    path.write_bytes(content)
    report = verify_files(tmp_path / "out", source)
    (problem,) = next(check for check in report.checks if check.name == "experts").problems[:1]
    assert "up_proj.weight_scale_2" in problem


@pytest.mark.parametrize("name", FORMATS)
def test_one_swapped_scale_is_found_in_an_ordinary_checkpoint(tmp_path, quantized, plan, name) -> None:
    source, out = quantized(name), tmp_path / "out"
    reshard(source, plan, out, layout="hf")
    scale = next(suffix for suffix in FORMATS[name] if "scale" in suffix)
    entries = [open_checkpoint(out).tensors[f"model.layers.2.mlp.experts.{e}.down_proj.{scale}"] for e in (0, 1)]
    values = [entry.file.read_bytes()[entry.begin : entry.end] for entry in entries]
    for entry, value in zip(entries, reversed(values), strict=True):
        with entry.file.open("r+b") as file:
            file.seek(entry.begin)
            file.write(value)
    report = verify_files(out, source)
    problems = next(check for check in report.checks if check.name == "experts").problems
    assert [f"experts.{e}.down_proj.{scale}" in problem for e, problem in enumerate(problems)] == [True, True]


@pytest.mark.parametrize("layout", ["ranks", "hf"])
def test_mxfp4_blocks_and_scales_follow_their_expert(tmp_path, make_checkpoint, recipes, plan, proven, layout) -> None:
    recipe = recipes["gpt_oss"]
    plain = {name: tensor for name, tensor in recipe.tensors.items() if not name.endswith("proj")}
    packed = {
        "experts.gate_up_proj_blocks": ("U8", (8, 24, 1, 16)),
        "experts.gate_up_proj_scales": ("U8", (8, 24, 1)),
        "experts.down_proj_blocks": ("U8", (8, 32, 1, 16)),
        "experts.down_proj_scales": ("U8", (8, 32, 1)),
    }
    source = make_checkpoint(tmp_path / "m", replace(recipe, tensors={**plain, **packed}))
    manifest = reshard(source, plan, tmp_path / "out", layout=layout)
    for name in packed:
        full = f"model.layers.2.mlp.{name}"
        before = contents(source, full)
        step = len(before) // 8
        moved = [before[old * step : (old + 1) * step] for old in ROWS[1]]
        if layout == "hf":
            assert contents(tmp_path / "out", full) == b"".join(moved)
        else:
            path = tmp_path / "out" / manifest.rank_file(1)
            entry = read_header(path)[full]
            assert path.read_bytes()[entry.begin : entry.end] == moved[2] + moved[3]
    assert manifest.expert_format == "stacked"
    assert verify_files(tmp_path / "out", source).passed
    proven("gpt_oss", "mxfp4", layout, "bytes of blocks and scales, with router and biases")
