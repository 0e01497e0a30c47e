"""The capacity page shows what is recorded, and compares plans at the same load."""

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def suite():
    """`page` and `outcome` of the benchmark's folder, which is no package."""
    modules = {}
    for name in ("outcome", "page"):
        spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/capacity_suite/{name}.py")
        modules[name] = importlib.util.module_from_spec(spec)
        sys.modules[name] = modules[name]
        spec.loader.exec_module(modules[name])
    yield modules
    for name in modules:
        del sys.modules[name]


def outcome(suite, plan, factor, load, dropped):
    bound = {"division": None, "level": None, "overflow": None}
    if factor is not None:
        bound = {"division": "plan", "level": "device", "overflow": "reroute"}
    return suite["outcome"].Outcome(
        attention="dp", batch_requests=32, plan=plan, factor=factor, heaviest_load=load, dropped=dropped,
        rerouted=dropped / 2, perplexity=10.0, excess=0.0, **bound,
    )  # fmt: skip


def test_drops_are_compared_at_the_same_heaviest_load(suite):
    outcomes = [outcome(suite, "linear", *row) for row in ((None, 1.3, 0.0), (1.0, 0.9, 0.2), (1.5, 1.1, 0.1))]
    at = {
        load: suite["page"]._at_load(load, "device", "reroute", "linear", "plan", outcomes) for load in (0.8, 1.0, 1.4)
    }
    assert at[0.8] is None, "no factor is as tight"
    assert at[1.0] == pytest.approx((0.15, 0.075))
    assert at[1.4] == (0.0, 0.0), "the plan never has such a load"


def test_the_page_is_that_of_the_record(suite):
    record = json.loads((ROOT / "benchmarks/results/capacity.json").read_text(encoding="utf-8"))
    outcomes = [suite["outcome"].Outcome(**row) for row in record["outcomes"]]
    assert [asdict(item) for item in outcomes] == record["outcomes"]
    assert suite["page"].page(record["about"], outcomes) == (ROOT / "docs/capacity.md").read_text(encoding="utf-8")
