"""Both layouts, byte for byte, on synthetic checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from specmoe.checkpoint import open_checkpoint
from specmoe.placement.reshard import rank_layout
from specmoe.placement.reshard.compilation import plan_compilation
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.manifest import CompiledManifest
from specmoe.placement.reshard.verify_files import verify_files
from specmoe.safetensors_header import read_header

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
GROUPED_ROWS = [[4, 5, 1, 0, 2, 3, 7, 6], [6, 7, 2, 3, 0, 1, 5, 4]]


def tensor_bytes(folder: Path, name: str) -> bytes:
    entry = open_checkpoint(folder).tensors[name]
    return entry.file.read_bytes()[entry.begin : entry.end]


def file_bytes(path: Path, name: str) -> bytes:
    entry = read_header(path)[name]
    return path.read_bytes()[entry.begin : entry.end]


def test_a_rank_file_holds_gate_and_up_rows_of_its_slots_in_plan_order(
    tmp_path, make_checkpoint, recipes, random_plan
) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    plan = random_plan(
        np.random.default_rng(0), num_experts=8, ranks_per_node=(3,), top_k=2, extra_slots=(1, 0, 2), layer_ids=(1, 2)
    )
    manifest = reshard(source, plan, tmp_path / "out")
    for rank in range(3):
        path = tmp_path / "out" / manifest.rank_file(rank)
        slots = plan.physical_to_logical[1, plan.slot_offsets[rank] : plan.slot_offsets[rank + 1]]
        block = "model.layers.2.block_sparse_moe.experts"
        expected = b"".join(
            tensor_bytes(source, f"{block}.{e}.w1.weight") + tensor_bytes(source, f"{block}.{e}.w3.weight")
            for e in slots
        )
        assert manifest.expert_modules[1] == "model.layers.2.mlp.experts"
        assert file_bytes(path, "model.layers.2.mlp.experts.gate_up_proj") == expected
        assert read_header(path)["model.layers.2.mlp.experts.gate_up_proj"].shape == (len(slots), 12, 4)
        assert file_bytes(path, "model.layers.2.mlp.experts.down_proj") == b"".join(
            tensor_bytes(source, f"{block}.{e}.w2.weight") for e in slots
        )
    assert manifest.expert_format == "fused"


def test_shared_files_hold_everything_else_under_its_own_name(tmp_path, make_checkpoint, recipes, random_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["deepseek_v3"])
    plan = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(2,), top_k=2, layer_ids=(1, 2))
    manifest = reshard(source, plan, tmp_path / "out")
    shared = [tmp_path / "out" / name for name in manifest.shared_files]
    found = {name: path for path in shared for name in read_header(path)}
    expected = {name for name in open_checkpoint(source).tensors if ".experts." not in name}
    assert set(found) == expected
    for name, path in found.items():
        assert file_bytes(path, name) == tensor_bytes(source, name)


def test_shared_tensors_are_split_over_files(tmp_path, make_checkpoint, recipes, random_plan, monkeypatch) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["deepseek_v3"])
    plan = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(2,), top_k=2, layer_ids=(1, 2))
    monkeypatch.setattr(rank_layout, "SHARED_FILE_BYTES", 150)
    manifest = reshard(source, plan, tmp_path / "out")
    assert manifest.shared_files[0] == f"shared-00001-of-{len(manifest.shared_files):05d}.safetensors"
    assert len(manifest.shared_files) > 1
    assert verify_files(tmp_path / "out", source).passed


def test_hf_renumbers_experts_and_permutes_router_and_bias(
    tmp_path, make_checkpoint, recipes, permutation_plan
) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["deepseek_v3"])
    plan = permutation_plan(GROUPED_ROWS, ep_size=2, layer_ids=(1, 2))
    out = tmp_path / "out"
    reshard(source, plan, out, layout="hf")
    for row, layer in enumerate((1, 2)):
        block = f"model.layers.{layer}.mlp"
        for new, old in enumerate(GROUPED_ROWS[row]):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                new_name = f"{block}.experts.{new}.{projection}.weight"
                assert tensor_bytes(out, new_name) == tensor_bytes(source, f"{block}.experts.{old}.{projection}.weight")
            for name, step in ((f"{block}.gate.weight", 8), (f"{block}.gate.e_score_correction_bias", 4)):
                moved = tensor_bytes(out, name)[new * step : (new + 1) * step]
                assert moved == tensor_bytes(source, name)[old * step : (old + 1) * step]
    assert tensor_bytes(out, "model.norm.weight") == tensor_bytes(source, "model.norm.weight")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == open_checkpoint(source).num_bytes


def test_fused_experts_are_permuted_with_biases_and_router(
    tmp_path, make_checkpoint, recipes, permutation_plan
) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["gpt_oss"])
    plan = permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))
    out = tmp_path / "out"
    reshard(source, plan, out, layout="hf")
    for name in recipes["gpt_oss"].tensors:
        full = f"model.layers.2.mlp.{name}"
        before, after = tensor_bytes(source, full), tensor_bytes(out, full)
        step = len(before) // 8
        assert after == b"".join(before[old * step : (old + 1) * step] for old in ROWS[1])


def test_fused_experts_keep_their_names_in_rank_files(tmp_path, make_checkpoint, recipes, permutation_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["gpt_oss"])
    manifest = reshard(source, permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2)), tmp_path / "out")
    path = tmp_path / "out" / manifest.rank_file(3)
    before = tensor_bytes(source, "model.layers.1.mlp.experts.gate_up_proj_bias")
    assert (
        file_bytes(path, "model.layers.1.mlp.experts.gate_up_proj_bias")
        == before[6 * 24 : 7 * 24] + before[5 * 24 : 6 * 24]
    )
    assert read_header(path)["model.layers.1.mlp.experts.gate_up_proj"].shape == (2, 4, 12)
    assert manifest.expert_format == "fused"


@pytest.mark.parametrize("layout", ["ranks", "hf"])
def test_a_layer_past_the_last_is_carried_along(tmp_path, make_checkpoint, recipes, permutation_plan, layout) -> None:
    """The head for speculative decoding has a router and experts of its own, which no plan covers."""
    recipe = recipes["deepseek_v3"]
    head = {
        name.format(e=e): tensor for name, tensor in recipe.tensors.items() for e in range(8 if "{e}" in name else 1)
    }
    extra = {f"model.layers.3.mlp.{name}": tensor for name, tensor in head.items()}
    source = make_checkpoint(tmp_path / "m", type(recipe)(**{**vars(recipe), "extra": extra}))
    out = tmp_path / "out"
    manifest = reshard(source, permutation_plan(GROUPED_ROWS, ep_size=2, layer_ids=(1, 2)), out, layout=layout)
    for name in extra:
        path = next(out / file for file in manifest.shared_files if name in read_header(out / file))
        assert file_bytes(path, name) == tensor_bytes(source, name)
    assert verify_files(out, source).passed


@pytest.mark.parametrize("layout", ["ranks", "hf"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_the_manifest_lists_every_file_and_verify_agrees(
    tmp_path, make_checkpoint, recipes, permutation_plan, layout, family
) -> None:
    source = make_checkpoint(tmp_path / "m", recipes[family], num_shards=3)
    out = tmp_path / "out"
    plan = permutation_plan(GROUPED_ROWS, ep_size=2, layer_ids=(1, 2))
    manifest = reshard(source, plan, out, layout=layout)
    loaded = CompiledManifest.load(out)
    assert loaded == manifest
    assert {path.name for path in out.iterdir()} == {*manifest.files, "specmoe.json"}
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert loaded.plan_digest == plan.digest
    assert loaded.model_fingerprint == open_checkpoint(source).fingerprint
    report = verify_files(out, source)
    assert report.passed, report
    assert verify_files(out).passed


def test_the_safetensors_library_reads_what_is_written(tmp_path, make_checkpoint, recipes, permutation_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["gpt_oss"])
    for layout in ("ranks", "hf"):
        manifest = reshard(
            source, permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2)), tmp_path / layout, layout=layout
        )
        for name in (name for name in manifest.files if name.endswith(".safetensors")):
            with safe_open(tmp_path / layout / name, framework="numpy") as handle:
                assert list(handle.keys())


def test_the_same_arguments_write_the_same_bytes(tmp_path, make_checkpoint, recipes, permutation_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    plan = permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))
    first, second = (reshard(source, plan, tmp_path / name, jobs=jobs) for name, jobs in (("a", 1), ("b", 3)))
    assert first == second


def test_python_files_templates_and_licence_are_copied_and_weights_are_not(
    tmp_path, make_checkpoint, recipes, permutation_plan
) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    (source / "additional_chat_templates").mkdir()
    kept = ("modeling_x.py", "LICENSE", "chat_template.jinja", "additional_chat_templates/tools.jinja", "vocab.txt")
    left = ("pytorch_model.bin", "old.safetensors", ".gitattributes", "flax.msgpack", "specmoe.json")
    for name in (*kept, *left):
        (source / name).write_text(name)
    manifest = reshard(source, permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2)), tmp_path / "out")
    assert set(kept) <= set(manifest.files)
    assert not set(left) & set(manifest.files)
    assert (tmp_path / "out/additional_chat_templates/tools.jinja").read_text() == kept[3]
    assert verify_files(tmp_path / "out", source).passed


def test_the_summary_counts_what_each_rank_reads(tmp_path, make_checkpoint, recipes, random_plan) -> None:
    source = make_checkpoint(tmp_path / "m", recipes["mixtral"])
    plan = random_plan(
        np.random.default_rng(1), num_experts=8, ranks_per_node=(2,), top_k=2, extra_slots=(2, 0), layer_ids=(1, 2)
    )
    summary = plan_compilation(source, plan, "ranks").summary()
    manifest = reshard(source, plan, tmp_path / "out")
    sizes = {name: record.num_bytes for name, record in manifest.files.items()}
    shared = sum(sizes[name] for name in manifest.shared_files)
    assert summary["bytes_read_per_rank"] == [shared + sizes[manifest.rank_file(rank)] for rank in (0, 1)]
    headers = {name: int.from_bytes((tmp_path / "out" / name).read_bytes()[:8], "little") + 8 for name in sizes}
    files = [[*manifest.shared_files, manifest.rank_file(rank)] for rank in (0, 1)]
    assert summary["weight_bytes_per_rank"] == [sum(sizes[name] - headers[name] for name in own) for own in files]
    assert summary["replica_slots_per_layer"] == 2
    replicated = [np.unique(row, return_counts=True)[1] for row in plan.physical_to_logical]
    assert summary["replicated_experts_per_layer"] == [int((counts > 1).sum()) for counts in replicated]
    assert summary["replica_bytes"] == 2 * 2 * 3 * 6 * 4 * 2, "layers, slots, projections, rows, columns, bytes"
    assert summary["copied_files"] == ["config.json", "tokenizer.json"]
