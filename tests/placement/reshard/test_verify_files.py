"""Every fault that is planted in a compiled checkpoint is found, and named by the check that should find it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from specmoe.errors import ArtifactError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard import verify_origin
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.verify_files import verify_files
from specmoe.safetensors_header import read_header

GROUPED_ROWS = [[4, 5, 1, 0, 2, 3, 7, 6], [6, 7, 2, 3, 0, 1, 5, 4]]
OTHER_ROWS = [[2, 3, 1, 0, 4, 5, 7, 6], [6, 7, 2, 3, 0, 1, 5, 4]]
BLOCK = "model.layers.2.mlp"


@pytest.fixture
def compiled(tmp_path, make_checkpoint, recipes, permutation_plan) -> Callable[[str], Path]:
    """`compiled(layout)` compiles the DeepSeek-V3 recipe at `tmp_path / "m"` and returns the output."""
    make_checkpoint(tmp_path / "m", recipes["deepseek_v3"])
    plan = permutation_plan(GROUPED_ROWS, ep_size=2, layer_ids=(1, 2))

    def compile_to(layout: str) -> Path:
        reshard(tmp_path / "m", plan, tmp_path / "out", layout=layout)
        return tmp_path / "out"

    return compile_to


def sign_again(out: Path) -> None:
    """Make the manifest agree with the files, as a faulty compiler would have left it."""
    path = out / "specmoe.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in out.iterdir()
        if file != path
    }
    path.write_text(json.dumps(manifest))


def find(out: Path, tensor: str) -> Path:
    return next(path for path in sorted(out.glob("*.safetensors")) if tensor in read_header(path))


def overwrite(out: Path, tensor: str, data: bytes, offset: int = 0) -> None:
    path = find(out, tensor)
    content = bytearray(path.read_bytes())
    begin = read_header(path)[tensor].begin + offset
    content[begin : begin + len(data)] = data
    path.write_bytes(content)


def contents(out: Path, tensor: str) -> bytes:
    path = find(out, tensor)
    entry = read_header(path)[tensor]
    return path.read_bytes()[entry.begin : entry.end]


def failed(out: Path, source: Path | None = None) -> set[str]:
    report = verify_files(out, source)
    assert report.passed == (not any(check.problems for check in report.checks))
    assert all("\n" not in problem for check in report.checks for problem in check.problems)
    return {check.name for check in report.checks if not check.passed}


def test_what_is_whole_passes(tmp_path, compiled) -> None:
    assert failed(compiled("hf"), tmp_path / "m") == set()


@pytest.mark.parametrize("name", ["gate.weight", "gate.e_score_correction_bias"])
def test_a_router_or_bias_that_was_not_permuted(tmp_path, compiled, name) -> None:
    out = compiled("hf")
    overwrite(out, f"{BLOCK}.{name}", contents(tmp_path / "m", f"{BLOCK}.{name}"))
    sign_again(out)
    assert failed(out) == set()
    assert failed(out, tmp_path / "m") == {"routers"}


def test_one_router_row_swapped_in_rank_layout(tmp_path, compiled) -> None:
    out = compiled("ranks")
    rows = contents(out, f"{BLOCK}.gate.weight")
    overwrite(out, f"{BLOCK}.gate.weight", rows[8:16] + rows[:8])
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"routers"}


def test_two_experts_swapped(tmp_path, compiled) -> None:
    out = compiled("hf")
    for projection in ("gate_proj", "up_proj", "down_proj"):
        names = [f"{BLOCK}.experts.{expert}.{projection}.weight" for expert in (3, 5)]
        first, second = (contents(out, name) for name in names)
        overwrite(out, names[0], second)
        overwrite(out, names[1], first)
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"experts"}


def test_an_expert_duplicated_and_another_lost(tmp_path, compiled) -> None:
    out = compiled("ranks")
    name = f"{BLOCK}.experts.gate_up_proj"
    slots = contents(out, name)
    step = len(slots) // 4
    overwrite(out, name, slots[:step], offset=step)
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"experts"}


def test_an_expert_duplicated_and_another_lost_in_an_ordinary_checkpoint(tmp_path, compiled) -> None:
    out = compiled("hf")
    for projection in ("gate_proj", "up_proj", "down_proj"):
        first, second = (f"{BLOCK}.experts.{expert}.{projection}.weight" for expert in (3, 5))
        overwrite(out, second, contents(out, first))
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"experts"}


def test_an_expert_left_out_of_an_ordinary_checkpoint(tmp_path, compiled) -> None:
    out = compiled("hf")
    lost = f"{BLOCK}.experts.5."
    for path in out.glob("model-*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(lost)}
        save_file(kept, path, metadata={"format": "pt"})
    index = out / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    kept_map = {name: file for name, file in weight_map.items() if not name.startswith(lost)}
    index.write_text(json.dumps({"weight_map": kept_map}))
    sign_again(out)
    assert failed(out) == set()
    assert failed(out, tmp_path / "m") == {"experts"}


def test_a_slot_left_out_of_a_rank_file(tmp_path, compiled) -> None:
    out = compiled("ranks")
    path = sorted(out.glob("experts-*"))[1]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: tensor[:-1].contiguous() for name, tensor in load_file(path).items()}, path, metadata=metadata)
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"experts", "completeness"}


def test_gate_and_up_rows_exchanged(tmp_path, compiled) -> None:
    out = compiled("ranks")
    name = f"{BLOCK}.experts.gate_up_proj"
    slot = contents(out, name)[:96]
    overwrite(out, name, slot[48:] + slot[:48])
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"experts"}


@pytest.mark.parametrize("layout", ["ranks", "hf"])
def test_a_flipped_bit_anywhere(tmp_path, compiled, layout) -> None:
    out = compiled(layout)
    for path in sorted(out.iterdir()):
        if path.name == "specmoe.json":
            continue
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
        assert "hashes" in failed(out)
        path.write_bytes(content)
    assert failed(out) == set()


def test_a_flipped_bit_that_was_signed(tmp_path, compiled) -> None:
    out = compiled("ranks")
    norm = contents(out, "model.norm.weight")
    overwrite(out, "model.norm.weight", bytes([norm[0] ^ 1]))
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"other tensors"}


def test_a_truncated_file(tmp_path, compiled) -> None:
    out = compiled("ranks")
    path = sorted(out.glob("experts-*"))[1]
    path.write_bytes(path.read_bytes()[:-3])
    assert failed(out, tmp_path / "m") == {"files", "hashes", "origin"}
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"origin"}


def test_missing_extra_and_renamed_files(compiled) -> None:
    out = compiled("ranks")
    (out / "tokenizer.json").rename(out / "tokenizer2.json")
    check = next(check for check in verify_files(out).checks if check.name == "files")
    assert len(check.problems) == 2
    assert "tokenizer2.json is not in the manifest" in check.problems
    assert any("is missing" in problem for problem in check.problems)


HUB_FILES = (".gitattributes", "README.md", ".cache/huggingface/download/config.json.metadata", ".git/objects/ab")


@pytest.mark.parametrize("layout", ["ranks", "hf"])
def test_what_the_hub_adds_to_a_folder_is_no_part_of_it(compiled, layout) -> None:
    out = compiled(layout)
    for name in HUB_FILES:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("from the hub")
    assert failed(out) == set()


@pytest.mark.parametrize(
    "name",
    ["extra.safetensors", ".extra.safetensors", ".cache/a.bin", "notes.md", "a/README.md", "generation_config.json"],
)
def test_any_other_file_is_refused(compiled, name) -> None:
    out = compiled("ranks")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("{}")
    (check,) = [check for check in verify_files(out).checks if not check.passed]
    assert check.problems == (f"{name} is not in the manifest",)


def test_a_file_replaced_by_a_link(tmp_path, compiled) -> None:
    out = compiled("ranks")
    (out / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (out / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    assert failed(out) == {"files"}


def test_rank_files_swapped(tmp_path, compiled) -> None:
    out = compiled("ranks")
    first, second = sorted(out.glob("experts-*"))
    swap(first, second)
    assert failed(out) == {"hashes", "rank files"}
    sign_again(out)
    assert failed(out) == {"rank files"}
    assert failed(out, tmp_path / "m") == {"rank files", "experts"}


def swap(first: Path, second: Path) -> None:
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])


def test_a_rank_file_without_a_description(compiled) -> None:
    out = compiled("ranks")
    path = sorted(out.glob("experts-*"))[0]
    path.write_bytes(path.read_bytes().replace(b'"specmoe":', b'"spccmoe":'))
    sign_again(out)
    assert failed(out) == {"rank files"}


@pytest.mark.parametrize("layout", ["ranks", "hf"])
def test_a_stale_plan(tmp_path, compiled, permutation_plan, layout) -> None:
    out = compiled(layout)
    other = permutation_plan(OTHER_ROWS, ep_size=2, layer_ids=(1, 2))
    other.save(out / "plan.safetensors", force=True)
    assert failed(out) >= {"hashes", "plan"}
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"plan"}
    state(out, plan_digest=other.digest)
    expected = {"rank files", "experts"} if layout == "ranks" else {"experts", "routers"}
    assert failed(out, tmp_path / "m") == expected


def state(out: Path, **changes: Any) -> None:
    path = out / "specmoe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_illegal_plan(compiled) -> None:
    out = compiled("ranks")
    path = out / "plan.safetensors"
    entry = read_header(path)["dispatch_slot"]
    content = bytearray(path.read_bytes())
    content[entry.begin] ^= 1
    path.write_bytes(content)
    sign_again(out)
    assert failed(out) == {"plan"}


def test_a_permutation_that_tears_groups(tmp_path, compiled, permutation_plan) -> None:
    out = compiled("hf")
    rows = [[1, 2, 3, 4, 5, 6, 7, 0]] * 2
    torn: PlacementPlan = permutation_plan(rows, ep_size=2, layer_ids=(1, 2))
    torn.save(out / "plan.safetensors", force=True)
    sign_again(out)
    state(out, plan_digest=torn.digest)
    assert "index" in failed(out)


def test_a_tensor_too_many_and_one_too_few(tmp_path, compiled) -> None:
    out = compiled("ranks")
    path = find(out, "model.norm.weight")
    path.write_bytes(path.read_bytes().replace(b"model.norm.weight", b"model.morn.weight"))
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"other tensors", "completeness"}


def test_a_source_tensor_that_nothing_looks_for(tmp_path, compiled, monkeypatch) -> None:
    out = compiled("ranks")
    places = verify_origin._places_in_ranks
    monkeypatch.setattr(
        verify_origin,
        "_places_in_ranks",
        lambda *arguments: (place for place in places(*arguments) if place.name != "model.norm.weight"),
    )
    (check,) = [check for check in verify_files(out, tmp_path / "m").checks if not check.passed]
    assert check.name == "completeness"
    assert "model.norm.weight of the source is not in the output" in check.problems


def test_a_tensor_of_another_shape(tmp_path, compiled) -> None:
    out = compiled("ranks")
    path = find(out, "model.embed_tokens.weight")
    path.write_bytes(path.read_bytes().replace(b"[16,4]", b"[4,16]"))
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"other tensors"}


def test_another_source(tmp_path, compiled, make_checkpoint, recipes) -> None:
    out = compiled("ranks")
    other = make_checkpoint(tmp_path / "other", recipes["deepseek_v3"], seed=1)
    assert failed(out, other) == {"source", "experts", "routers", "other tensors"}


def test_a_copied_file_that_differs_from_the_source(tmp_path, compiled) -> None:
    out = compiled("ranks")
    (out / "tokenizer.json").write_text("{}")
    sign_again(out)
    assert failed(out, tmp_path / "m") == {"source"}


def test_an_index_that_disagrees(tmp_path, compiled) -> None:
    out = compiled("hf")
    path = out / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("experts.3.up_proj", "experts.9.up_proj"))
    sign_again(out)
    assert failed(out) == {"index"}


def test_a_folder_without_a_manifest_is_no_compiled_checkpoint(tmp_path, compiled) -> None:
    with pytest.raises(ArtifactError, match="is not a compiled checkpoint"):
        verify_files(tmp_path / "m")
