"""`specmoe evaluate` on the command line: its tables, its JSON, its exit codes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from specmoe.cli.commands.evaluate_command import command
from specmoe.cli.main import main
from specmoe.placement.baselines.eplb import eplb
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.domain_counts import DomainCounts
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


def random_profile(num_tokens: int = 40, num_experts: int = 8) -> RoutingProfile:
    rng = np.random.default_rng(num_experts)
    ids = rng.random((num_tokens, 2, num_experts)).argsort(axis=-1)[..., :2].astype(np.uint8)
    return RoutingProfile(
        layer_ids=np.array([0, 5], dtype=np.int32),
        expert_counts=np.stack([np.bincount(ids[:, layer].ravel(), minlength=num_experts) for layer in range(2)]),
        num_logical_experts=num_experts,
        top_k=2,
        num_tokens=num_tokens,
        sample=RoutingSample(expert_ids=ids, gate_weights=np.full(ids.shape, 0.5, dtype=np.float16)),
        source="a test",
    )


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, made the current one, with `trace`, and `two` and `nodes`, plans of 2 ranks and of 4 on 2 nodes."""
    profile = random_profile()
    profile.save(tmp_path / "trace")
    eplb(profile, Topology.single_node(2), SolveOptions()).save(tmp_path / "two")
    eplb(profile, Topology(ranks_per_node=(2, 2)), SolveOptions(extra_slots=1)).save(tmp_path / "nodes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.usefixtures("files")
def test_json_names_plans_as_given_and_adds_the_baselines() -> None:
    value = json.loads(run("two", "./nodes", "--profile", "trace", "--json"))
    names = [result["name"] for result in value["results"]]
    assert names[:5] == ["two", "./nodes", "linear", "round_robin", "eplb"]
    assert [row["layer_id"] for row in value["results"][0]["layers"]] == [0, 5]
    assert value["results"][1]["mean"]["internode_copies_per_token"] > 0


@pytest.mark.usefixtures("files")
def test_the_table_shows_plans_and_baselines_and_marks_the_best() -> None:
    text = run("two", "--profile", "trace")
    for expected in ("two", "linear", "round_robin", "eplb", "40 tokens in 40 requests of a test", "fitted on this"):
        assert expected in text
    shown = json.loads(run("two", "--profile", "trace", "--json"))["results"]
    for result in shown:
        row = next(line for line in text.splitlines() if line.startswith(result["name"] + " "))
        copies, star = re.match(r"\S+\s+([\d.]+)( \*)?", row).groups()  # type: ignore[union-attr]
        assert copies == f"{result['mean']['remote_copies_per_token']:.3f}"
        least = min(other["mean"]["remote_copies_per_token"] for other in shown)
        assert (star is not None) == (copies == f"{least:.3f}")


def test_token_tables_that_the_trace_cannot_use_are_named(files: Path) -> None:
    assert "went unread" not in run("two", "--profile", "trace")
    plan = PlacementPlan.load(files / "two")
    replace(plan, token_affinity=np.zeros((3, 2), dtype=np.float16)).save(files / "tables")
    assert "token tables went unread: tables" in run("tables", "two", "--profile", "trace")


@pytest.mark.usefixtures("files")
def test_copies_to_other_nodes_are_shown_where_there_are_nodes() -> None:
    assert "to other" not in run("two", "--profile", "trace")
    assert "to other" in run("nodes", "--profile", "trace")


def by_domain(files: Path) -> RoutingProfile:
    """`trace` with tokens of three domains, one of them without a number, and names that are not words."""
    profile = random_profile()
    assert profile.sample is not None
    domain_ids = np.repeat(np.array([1, 0, -1], dtype=np.int16), [20, 15, 5])
    counts = [
        np.stack([np.bincount(profile.sample.expert_ids[own, layer].ravel(), minlength=8) for layer in range(2)])
        for own in (domain_ids != 1, domain_ids == 1)
    ]
    domains = DomainCounts(names=("[/INST]", "b\x1b[2J"), num_tokens=np.array([20, 20]), expert_counts=np.stack(counts))
    named = replace(profile, sample=replace(profile.sample, domain_ids=domain_ids), domains=domains)
    named.save(files / "named")
    return named


def test_each_domain_is_judged_where_the_whole_trace_puts_its_tokens(files: Path) -> None:
    profile = by_domain(files)
    assert profile.sample is not None
    value = json.loads(run("two", "--profile", "named", "--by-domain", "--json"))
    for result in value["results"]:
        found = {domain["domain"]: domain for domain in result["domains"]}
        assert {name: domain["num_tokens"] for name, domain in found.items()} == {
            "no domain": 5,
            "[/INST]": 15,
            "b\x1b[2J": 20,
        }
        for name in ("remote_copies_per_token", "local_activation_rate"):
            parts = sum(domain["num_tokens"] * domain["mean"][name] for domain in found.values())
            assert parts == pytest.approx(40 * result["mean"][name])
    assert "domains" not in json.loads(run("two", "--profile", "named", "--json"))["results"][0]


def test_names_from_a_file_are_shown_as_they_are(files: Path) -> None:
    by_domain(files)
    (files / "x[").mkdir()
    (files / "two").rename(files / "x[/b]")
    rows = run("x[/b]", "--profile", "named", "--by-domain").splitlines()
    assert [row.split("  ")[0] for row in rows[-3:]] == ["no domain", "[/INST]", "b\N{REPLACEMENT CHARACTER}[2J"]
    assert any(row.startswith("x[/b]  ") for row in rows)


@pytest.mark.usefixtures("files")
def test_layers_prints_a_row_per_layer() -> None:
    text = run("two", "--profile", "trace", "--layers")
    assert [line.split()[0] for line in text.splitlines()[-2:]] == ["0", "5"]


@pytest.mark.usefixtures("files")
def test_capacity_prints_a_row_per_placement_factor_and_level() -> None:
    text = run("two", "--profile", "trace", "--capacity", "1.0,2")
    rows = [line.split()[:3] for line in text.splitlines()[-16:]]
    assert rows[:4] == [["two", factor, level] for factor in ("1", "2") for level in ("expert", "device")]
    assert [row[0] for row in rows[4::4]] == ["linear", "round_robin", "eplb"]


def test_row_bytes_adds_a_modelled_step(files: Path) -> None:
    topology = Topology(ranks_per_node=(2,), intra_node_gb_per_s=1.0)
    eplb(random_profile(), topology, SolveOptions()).save(files / "links")
    arguments = ("links", "--profile", "trace", "--row-bytes", "1000", "--pair-us", "0.5")
    assert "step, µs" in run(*arguments)
    for result in json.loads(run(*arguments, "--json"))["results"]:
        step = result["modelled_step"]["mean"]
        assert step["step_us"] == pytest.approx(2 * step["exchange_us"] + step["compute_us"])
        assert step["compute_us"] > 0


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["missing", "--profile", "trace"], 1, "missing is not a file"),
        (["two", "--profile", "two"], 1, "two is of format 'specmoe.plan/1', 'specmoe.profile/1' was expected"),
        (["two", "--profile", "other"], 1, "plan two is for another model than the profile"),
        (["two", "--profile", "counts"], 1, "evaluating a plan needs the routing of single tokens"),
        (["two", "--profile", "trace", "--capacity", "1,x"], 2, "--capacity is '1,x', numbers such as"),
        (["two", "--profile", "trace", "--capacity", "0"], 2, "a capacity factor is 0.0, a positive number"),
        (["two", "--profile", "trace", "--by-domain"], 1, "figures by domain need a profile that knows"),
        (["two", "--profile", "trace", "--row-bytes", "9"], 2, "a modelled step time needs intra_node_gb_per_s"),
        (["two"], 2, "Missing option '--profile'"),
        (["--profile", "trace"], 2, "Missing argument 'PLAN...'"),
    ],
    ids=[
        "no such file",
        "not a profile",
        "another model",
        "counts alone",
        "no number",
        "zero",
        "no domains",
        "no links",
        "no profile",
        "no plan",
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(
    files: Path,
    arguments: list[str],
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    random_profile(num_experts=9).save(files / "other")
    counts = random_profile()
    RoutingProfile(
        layer_ids=counts.layer_ids,
        expert_counts=counts.expert_counts,
        num_logical_experts=8,
        top_k=2,
        num_tokens=40,
    ).save(files / "counts")
    monkeypatch.setattr("sys.argv", ["specmoe", "evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == exit_code
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err
