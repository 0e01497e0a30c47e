"""Routers that score more than experts, and routing by a table of token ids: what moves and what stays."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specmoe.checkpoint import open_checkpoint
from specmoe.errors import CheckpointError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.verify_files import verify_files

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
TABLE = "layers.1.ffn.gate.tid2eid"


@pytest.fixture
def plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))


@pytest.fixture
def longcat(tmp_path, make_checkpoint, recipes) -> Callable[[int | None], Path]:
    """`longcat(stated)`: 8 experts, of which the configuration states `stated`, and 2 that compute nothing."""

    def make(stated: int | None) -> Path:
        experts = {name: tensor for name, tensor in recipes["deepseek_v3"].tensors.items() if "{e}" in name}
        tensors = {
            "router.classifier.weight": ("BF16", (10, 4)),
            "router.e_score_correction_bias": ("F32", (10,)),
            "experts.9.up_proj.weight": ("BF16", (6, 4)),
            **experts,
        }
        config = {"n_routed_experts": stated, "moe_topk": 2}
        recipe = replace(recipes["deepseek_v3"], model_type="longcat_flash", tensors=tensors, config=config)
        return make_checkpoint(tmp_path / "m", recipe)

    return make


def contents(folder: Path, name: str) -> bytes:
    entry = open_checkpoint(folder).tensors[name]
    return entry.file.read_bytes()[entry.begin : entry.end]


def overwrite(folder: Path, name: str, data: bytes) -> None:
    entry = open_checkpoint(folder).tensors[name]
    with entry.file.open("r+b") as file:
        file.seek(entry.begin)
        file.write(data)


def test_scores_of_what_is_no_expert_stay_last(tmp_path, longcat, plan) -> None:
    source = longcat(8)
    reshard(source, plan, tmp_path / "out", layout="hf")
    name = "model.layers.2.mlp.router.e_score_correction_bias"
    before, after = (np.frombuffer(contents(folder, name), np.float32) for folder in (source, tmp_path / "out"))
    assert after.tobytes() == before[[*ROWS[1], 8, 9]].tobytes()
    name = "model.layers.2.mlp.experts.9.up_proj.weight"
    assert contents(tmp_path / "out", name) == contents(source, name)
    assert verify_files(tmp_path / "out", source).passed


@pytest.mark.parametrize("stated", [None, 0, 11])
def test_a_number_of_experts_that_the_router_does_not_score(tmp_path, longcat, plan, stated) -> None:
    with pytest.raises(CheckpointError, match=f"the configuration states {stated} experts, 1 to the router's 10 were"):
        reshard(longcat(stated), plan, tmp_path / "out")


@pytest.fixture
def hashed(tmp_path, make_checkpoint, recipes) -> Callable[[str], Path]:
    """`hashed(dtype)`: a DeepSeek-V4 whose first layer routes by a table [16, 2] of `dtype`."""

    def make(dtype: str) -> Path:
        experts = {name: tensor for name, tensor in recipes["mixtral"].tensors.items() if "{e}" in name}
        recipe = replace(
            recipes["mixtral"],
            model_type="deepseek_v4",
            prefix="layers.{layer}.ffn.",
            tensors={"gate.weight": ("BF16", (8, 4)), **experts},
            extra={TABLE: (dtype, (16, 2)), "layers.2.ffn.gate.bias": ("F32", (8,))},
        )
        source = make_checkpoint(tmp_path / "m", recipe)
        if dtype in ("I64", "I32"):
            table = np.random.default_rng(0).integers(8, size=(16, 2))
            overwrite(source, TABLE, table.astype({"I64": np.int64, "I32": np.int32}[dtype]).tobytes())
        return source

    return make


@pytest.mark.parametrize("dtype", ["I64", "I32"])
def test_a_table_of_experts_names_the_new_numbers(tmp_path, hashed, plan, dtype) -> None:
    source = hashed(dtype)
    reshard(source, plan, tmp_path / "out", layout="hf")
    kind = {"I64": np.int64, "I32": np.int32}[dtype]
    old, new = (np.frombuffer(contents(folder, TABLE), kind) for folder in (source, tmp_path / "out"))
    assert [ROWS[0][number] for number in new] == old.tolist()
    assert verify_files(tmp_path / "out", source).passed


def test_a_table_of_experts_stays_as_it_is_beside_rank_files(tmp_path, hashed, plan) -> None:
    source = hashed("I64")
    reshard(source, plan, tmp_path / "out")
    assert verify_files(tmp_path / "out", source).passed


@pytest.mark.parametrize("layout", ["ranks", "hf"])
def test_verify_finds_a_table_that_names_one_other_expert(tmp_path, hashed, plan, layout) -> None:
    source = hashed("I64")
    manifest = reshard(source, plan, tmp_path / "out", layout=layout)
    name = TABLE.encode()
    path = next(p for p in (tmp_path / "out" / n for n in manifest.shared_files) if name in p.read_bytes())
    content = path.read_bytes()
    table = contents(source, TABLE) if layout == "ranks" else contents(tmp_path / "out", TABLE)
    place = content.index(table)
    path.write_bytes(content[:place] + bytes([(content[place] + 1) % 8]) + content[place + 1 :])
    failed = {check.name for check in verify_files(tmp_path / "out", source).checks if not check.passed}
    assert failed == {"hashes", "routers"}


@pytest.mark.parametrize(
    ("dtype", "message"), [("F32", "tid2eid is F32, expert numbers of one of"), ("I16", "names experts .* 0 to 7 were")]
)
def test_a_table_that_names_no_experts_is_refused(tmp_path, hashed, plan, dtype, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        reshard(hashed(dtype), plan, tmp_path / "out", layout="hf")
    assert not (tmp_path / "out").exists()
