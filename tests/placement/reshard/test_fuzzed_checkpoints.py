"""Whatever a checkpoint's names, types, shapes and index say: it is refused in one sentence, or compiled provably."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specmoe.errors import SpecmoeError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.verify_files import verify_files

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
FILE = "model.safetensors"
SAFETENSORS_NAMES = ("model-00001-of-00001.safetensors", "plan.safetensors", "shared-00001-of-00001.safetensors")

HOSTILE_NAMES = st.sampled_from(
    [
        "../../escaped",
        "/tmp/escaped",
        "model.layers.1.block_sparse_moe.experts.8.w1.weight",
        "model.layers.1.block_sparse_moe.experts.00.w1.weight",
        "model.layers.1.block_sparse_moe.experts.-1.w1.weight",
        "model.layers.1.block_sparse_moe.experts.0.w1.weight.weight",
        "model.layers.1.block_sparse_moe.experts.0.w9.weight",
        "model.layers.1.block_sparse_moe.experts.999999999999.w1.weight",
        "model.layers.99999999999999999999.block_sparse_moe.gate.weight",
        "model.layers.3.block_sparse_moe.gate.weight",
        "model.layers.1.block_sparse_moe.gate.bias",
        "other.layers.1.block_sparse_moe.gate.weight",
        "__metadata__",
        "",
    ]
)
EDITS = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.one_of(
            st.tuples(st.just("name"), HOSTILE_NAMES | st.text(max_size=8)),
            st.tuples(st.just("dtype"), st.sampled_from(["F16", "I16", "U8", "F4", "F32", "BOOL"])),
            st.tuples(st.just("flatten"), st.sampled_from([1, 2, 3])),
            st.tuples(st.just("offsets"), st.tuples(st.integers(-8, 4000), st.integers(-8, 4000))),
            st.tuples(st.just("swap"), st.integers(0, 200)),
            st.tuples(st.just("delete"), st.none()),
        ),
    ),
    max_size=3,
)


@pytest.fixture
def plan(permutation_plan: Callable[..., PlacementPlan]) -> PlacementPlan:
    return permutation_plan(ROWS, ep_size=4, layer_ids=(1, 2))


@pytest.fixture
def source(tmp_path: Path, make_checkpoint: Callable[..., Path], recipes: Mapping[str, Any]) -> Path:
    folder = make_checkpoint(tmp_path / "m", recipes["mixtral"], num_shards=1)
    (folder / SAFETENSORS_NAMES[0]).rename(folder / FILE)
    (folder / "model.safetensors.index.json").unlink()
    return folder


def edited(header: dict[str, Any], number: int, kind: str, value: Any) -> dict[str, Any]:
    """The header with one entry changed; its bytes stay what they were, but for "offsets" and "delete"."""
    name = list(header)[number % len(header)]
    entry = dict(header[name])
    if kind == "name":
        return {value if key == name else key: item for key, item in header.items()}
    if kind == "delete":
        return {key: item for key, item in header.items() if key != name}
    if kind == "swap":
        other = list(header)[value % len(header)]
        return {**header, name: header[other], other: header[name]}
    if kind == "flatten":
        entry["shape"] = [1] * (value - 1) + [int(np.prod(entry["shape"]))]
    else:
        entry["data_offsets" if kind == "offsets" else "dtype"] = value
    return {**header, name: entry}


def compile_or_refuse(folder: Path, source: Path, plan: PlacementPlan) -> int:
    """How many layouts were compiled; each is whole, and a refused one leaves nothing behind."""
    before, compiled = sorted(folder.rglob("*")), 0
    for layout in ("ranks", "hf"):
        try:
            reshard(source, plan, folder / "out", layout=layout, jobs=1)
        except SpecmoeError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            compiled += 1
            assert verify_files(folder / "out", source).passed
            shutil.rmtree(folder / "out")
        assert sorted(folder.rglob("*")) == before
    return compiled


FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_what_is_not_edited_is_compiled(tmp_path, source, plan) -> None:
    assert compile_or_refuse(tmp_path, source, plan) == 2


@FUZZ
@given(edits=EDITS)
def test_an_edited_header_is_refused_or_compiled_provably(tmp_path, source, plan, edits) -> None:
    path = source / FILE
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for number, (kind, value) in edits:
        if header:
            header = edited(header, number, kind, value)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    try:
        compile_or_refuse(tmp_path, source, plan)
    finally:
        path.write_bytes(content)


@FUZZ
@given(
    files=st.lists(
        st.sampled_from([FILE, *SAFETENSORS_NAMES, "../m/model.safetensors", "/etc/passwd", "config.json", "m\0"])
        | st.text(max_size=4),
        min_size=1,
        max_size=3,
    ),
    dropped=st.integers(0, 3),
)
def test_an_edited_index_is_refused_or_compiled_provably(tmp_path, source, plan, files, dropped) -> None:
    content = (source / FILE).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = list(header)[dropped:]
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[i % len(files)] for i, name in enumerate(names)}}))
    copy = source / files[0] if files[0] in SAFETENSORS_NAMES else None
    if copy is not None:
        (source / FILE).rename(copy)
    try:
        compile_or_refuse(tmp_path, source, plan)
    finally:
        index.unlink()
        if copy is not None:
            copy.rename(source / FILE)
