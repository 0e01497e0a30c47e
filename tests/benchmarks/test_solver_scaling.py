"""The growth sweep's plot and its record, written while it goes."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import solver_scaling

    monkeypatch.setattr(solver_scaling, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["solver_scaling.py", "--models", ""])
    return solver_scaling


def measured(scaling, case, cpu_s):
    methods = dict.fromkeys(("auto", "linear", "eplb"), 1.0)
    return scaling.Measured(case=case, wall_s=1.0, cpu_s=cpu_s, peak_mib=1.0, copies=methods, imbalance=methods)


def test_what_is_measured_so_far_is_written_with_its_exponent_and_plot(scaling, tmp_path):
    cases = list(scaling.sweep("experts", "tp"))
    found = [measured(scaling, case, float(case.size.experts) ** 2) for case in cases]
    scaling.write({"experts, tp": found[:1]}, "growth")
    assert "to the power" not in (tmp_path / "growth.md").read_text()
    scaling.write({"experts, tp": found}, "growth")
    assert "to the power 2.00" in (tmp_path / "growth.md").read_text()
    assert "<svg" in (tmp_path / "growth.svg").read_text()
    assert [one["cpu_s"] for one in json.loads((tmp_path / "growth.json").read_text())["tables"]["experts, tp"]] == [
        one.cpu_s for one in found
    ]


def test_a_trial_has_fewer_tokens_and_nothing_else_less(scaling):
    case = next(scaling.sweep("tokens", "dp"))
    assert scaling.shrunk(case, 10).size.tokens == case.size.tokens // 10
    assert scaling.shrunk(case, 10).size.layers == case.size.layers
