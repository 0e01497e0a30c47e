"""The benchmarks of reshard and loading: what they compute, and that documents show what was recorded."""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path[:] = before


@pytest.mark.parametrize("name", ["reshard", "loading"])
def test_documents_show_the_record_and_nothing_before_there_is_one(name) -> None:
    program, shown = import_module(name), import_module("shown_block").shown
    record = RECORDS / f"{name}.json"
    table = summary = ""
    if record.exists():
        stored = json.loads(record.read_text())
        table, summary = program.table(stored).strip(), program.summary(stored).strip()
        assert (RECORDS / f"{name}.md").read_text().strip() == table
    assert shown((ROOT / "docs" / "reshard.md").read_text(), name) == table
    assert shown((ROOT / "README.md").read_text(), name) == summary


def test_a_block_is_replaced_and_the_rest_stays() -> None:
    with_block = import_module("shown_block").with_block
    text = "before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter <!-- b:begin --><!-- b:end -->\n"
    assert with_block(text, "a", "new\n") == text.replace("old", "new")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The reshard benchmark with small experts, one layout and no second job."""
    program = import_module("reshard")
    synthetic = import_module("synthetic_checkpoint")
    for name, size in {"NUM_EXPERTS": 8, "HIDDEN": 256, "INTERMEDIATE": 128, "SHARD_BYTES": 2**20}.items():
        monkeypatch.setattr(synthetic, name, size)
    monkeypatch.setattr(program, "LAYOUTS", ("hf",))
    return program


def test_every_way_of_the_reshard_benchmark_is_measured(tiny, tmp_path, monkeypatch) -> None:
    arguments = ["reshard.py", "--gib", "0.004", "--rounds", "1", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--out", str(tmp_path / "record")])
    tiny.main()
    stored = json.loads((tmp_path / "record.json").read_text())
    layers = stored["about"]["tensors"] // 50
    assert layers > 2
    assert stored["about"]["files"] > 3, "several shards, an index and a configuration"
    ways = ["cp, then sync", "cp alone", "reshard, hf", "reshard, hf, --jobs 1"]
    assert [(row["page_cache"], row["way"]) for row in stored["rows"]] == [
        (state, way) for state in ("warm", "cold") for way in ways
    ]
    for row in stored["rows"]:
        base = next(r for r in stored["rows"] if (r["page_cache"], r["way"]) == (row["page_cache"], ways[0]))
        assert row["ratio"] == pytest.approx(base["figures"]["seconds"] / row["figures"]["seconds"], abs=1e-3)
        if row["way"].startswith("reshard"):
            assert 10 < row["figures"]["peak_mib"] < 1024
    assert len((tmp_path / "record.md").read_text().splitlines()) == 4 + len(stored["rows"])
    assert "MiB of memory" in tiny.summary(stored)


def test_a_way_to_load_with_other_logits_ends_the_loading_benchmark() -> None:
    require_same = import_module("loading")._require_same
    require_same({"a": 0.31, "b": 0.32, "c": 0.30})
    with pytest.raises(SystemExit, match="b gives other logits"):
        require_same({"a": 0.31, "b": -0.4})
    with pytest.raises(SystemExit, match="b gives other logits"):
        require_same({"a": 0.31, "b": float("nan")})
