"""Exporting: two files or none, what is refused, and what the sidecar says was lost."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import specmoe.atomic
from specmoe.errors import MismatchError, OutputError, UsageError
from specmoe.placement.export.engines import ENGINES
from specmoe.placement.export.export_plan import export_plan, sidecar_path


def test_the_sidecar_names_the_plan_and_the_file(small_plan, tmp_path) -> None:
    path = tmp_path / "experts.json"
    description = export_plan(small_plan, "sglang", path, num_layers=4)
    assert sidecar_path(path) == tmp_path / "experts.json.specmoe.json"
    assert json.loads(sidecar_path(path).read_text()) == description
    assert description["plan_digest"] == small_plan.digest
    assert description["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (description["ep_size"], description["num_redundant_experts"]) == (2, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["experts.json", "experts.json.specmoe.json"]


def test_replicas_lose_the_dispatch_table_and_cover_its_choice(small_plan, tmp_path) -> None:
    cover = replace(small_plan, replica_choice="cover")
    assert set(export_plan(small_plan, "trtllm", tmp_path / "a")["lost"]) == {"dispatch_slot"}
    assert set(export_plan(cover, "trtllm", tmp_path / "b")["lost"]) == {"dispatch_slot", "replica_choice"}
    assert export_plan(cover, "json", tmp_path / "c")["lost"] == {}


def test_a_plan_without_replicas_and_tables_loses_nothing(random_plan, tmp_path) -> None:
    plan = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(4,), top_k=2)
    assert export_plan(plan, "vllm", tmp_path / "map.json")["lost"] == {}


def test_token_tables_are_lost_everywhere(small_plan, tmp_path) -> None:
    affine = replace(small_plan, token_affinity=np.zeros((5, 2), np.float16))
    table = replace(
        small_plan,
        attention="tp",
        token_to_rank=np.full((3, 5), -1, np.int16),
        token_confidence=np.zeros((3, 5), np.float16),
    )
    for engine in ENGINES:
        lost = export_plan(affine, engine, tmp_path / f"{engine}-dp.json", num_layers=4)["lost"]
        assert "token_affinity" in lost
        lost = export_plan(table, engine, tmp_path / f"{engine}-tp.json", num_layers=4)["lost"]
        assert {"token_to_rank", "token_confidence"} <= set(lost)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "json"])
def test_unequal_ranks_are_refused_where_the_engine_cuts_equal_blocks(engine, random_plan, tmp_path) -> None:
    plan = random_plan(np.random.default_rng(0), num_experts=9, ranks_per_node=(2,), top_k=2)
    with pytest.raises(MismatchError, match=r"the plan's ranks have \[5, 4\]"):
        export_plan(plan, engine, tmp_path / "map.json", num_layers=1)
    assert list(tmp_path.iterdir()) == []


def test_the_neutral_file_takes_unequal_ranks(random_plan, tmp_path) -> None:
    plan = random_plan(np.random.default_rng(0), num_experts=9, ranks_per_node=(2,), top_k=2)
    export_plan(plan, "json", tmp_path / "map.json")
    assert json.loads((tmp_path / "map.json").read_text())["rank_of_physical"] == [0] * 5 + [1] * 4


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_too_shallow_for_the_plan_is_refused(engine, small_plan, tmp_path) -> None:
    with pytest.raises(UsageError, match="the model has 3 decoder layers, and the plan places experts of layer 3"):
        export_plan(small_plan, engine, tmp_path / "map.json", num_layers=3)
    assert list(tmp_path.iterdir()) == []


def test_sglang_would_take_another_ending_for_json_text_so_it_is_refused(small_plan, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"sglang reads only files whose name ends in \.json"):
        export_plan(small_plan, "sglang", tmp_path / "map.txt", num_layers=4)


def test_neither_an_existing_file_nor_a_lone_sidecar_is_replaced_unless_forced(small_plan, tmp_path) -> None:
    path = tmp_path / "map.json"
    for present, absent in ((path, sidecar_path(path)), (sidecar_path(path), path)):
        present.write_text("mine")
        with pytest.raises(OutputError, match="exists already"):
            export_plan(small_plan, "vllm", path)
        assert present.read_text() == "mine"
        assert not absent.exists()
        present.unlink()
    path.write_text("mine")
    export_plan(small_plan, "vllm", path, force=True)
    assert json.loads(path.read_text()) == small_plan.physical_to_logical.tolist()


def test_a_disk_that_fills_up_at_the_sidecar_leaves_nothing(small_plan, tmp_path, monkeypatch) -> None:
    def fill_up(path: Path) -> None:
        if ".specmoe.json" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(specmoe.atomic, "sync", fill_up)
    with pytest.raises(OutputError, match="No space left on device"):
        export_plan(small_plan, "vllm", tmp_path / "map.json")
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_for_its_sidecar_is_one_sentence(small_plan, tmp_path) -> None:
    with pytest.raises(OutputError, match="File name too long"):
        export_plan(small_plan, "vllm", tmp_path / ("x" * 245))
