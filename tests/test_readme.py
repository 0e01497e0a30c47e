"""The README's figures are those of a recorded run, and its commands exist."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BEGIN, END = "<!-- demo:begin -->", "<!-- demo:end -->"


def test_the_table_is_the_recorded_one() -> None:
    shown = README.split(BEGIN, 1)[1].split(END, 1)[0].strip()
    assert shown == (ROOT / "benchmarks/results/demo.md").read_text(encoding="utf-8").strip()


def test_the_recorded_table_shows_the_recorded_figures() -> None:
    record = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))
    table = (ROOT / "benchmarks/results/demo.md").read_text(encoding="utf-8")
    placements = record["result"]["placements"]
    assert {"linear", "round_robin", "eplb"} < set(placements)
    for name, mean in placements.items():
        row = next(line for line in table.splitlines() if re.match(rf"\| {re.escape(name)} +\|", line))
        assert f"{mean['remote_copies_per_token']:.3f}" in row
        assert f"{mean['load_imbalance']:.3f}" in row


def test_the_gains_on_slow_links_are_the_recorded_ones() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        publish_runtime = import_module("publish_runtime")
    finally:
        sys.path.pop(0)
    shown = README.split(publish_runtime.BEGIN, 1)[1].split(publish_runtime.END, 1)[0].strip()
    recorded = ROOT / "benchmarks/results/runtime.json"
    if recorded.exists():
        assert shown == publish_runtime.shown(json.loads(recorded.read_text(encoding="utf-8")))
    else:
        assert shown == "No run is recorded yet."


@pytest.mark.parametrize("line", [line for line in README.splitlines() if re.match(r"(torchrun .*)?specmoe ", line)])
def test_a_shown_command_has_the_options_that_it_is_shown_with(line: str) -> None:
    import click

    from specmoe.cli.main import cli

    words = line.split("specmoe ", 1)[1].split("#")[0].split()
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, f"there is no command {words[0]}"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-") and len(word) > 1} <= known


def test_make_has_the_two_first_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    first = README.split("```")[1].split("\n")[1:3]
    for line in first:
        target = line.split("#")[0].split()[1]
        assert f"\n{target}:" in makefile
