"""The benchmark on slow links: what it predicts, what it demands of the results, and how it shows them."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from specmoe.placement.metrics import mean_metrics, measure_plan

SUITE = Path(__file__).parents[2] / "benchmarks" / "runtime_suite"
REQUESTS, PROMPT, NEW, LAYERS, EXPERTS, TOP_K = 8, 4, 5, 3, 12, 4


@pytest.fixture(scope="module")
def suite() -> Iterator[SimpleNamespace]:
    sys.path.insert(0, str(SUITE))
    names = ("workload", "prediction", "verdict", "tables", "layouts", "replay", "network", "rank_program")
    yield SimpleNamespace(**{name: import_module(name) for name in names})
    sys.path.remove(str(SUITE))


@pytest.fixture
def workload(suite: SimpleNamespace) -> Any:
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((REQUESTS, PROMPT + NEW - 1, LAYERS, EXPERTS)), axis=-1)[..., :TOP_K]
    return suite.workload.Workload(
        tokens=torch.tensor(rng.integers(0, 20, (REQUESTS, PROMPT + NEW))),
        expert_ids=torch.tensor(ids.astype(np.uint8)),
        first_logits=torch.zeros((REQUESTS, 20)),
        prompt_tokens=PROMPT,
        replay=True,
    )


@pytest.fixture
def plan(random_plan: Callable[..., Any]) -> Any:
    made = random_plan(
        np.random.default_rng(1),
        num_experts=EXPERTS,
        ranks_per_node=(2, 2),
        top_k=TOP_K,
        extra_slots=1,
        layer_ids=tuple(range(LAYERS)),
    )
    return replace(made, token_affinity=np.random.default_rng(2).random((20, 4)).astype(np.float16))


def test_a_workload_is_read_as_it_was_saved(workload: Any, suite: SimpleNamespace, tmp_path: Path) -> None:
    workload.save(tmp_path / "workload.safetensors")
    read = suite.workload.Workload.load(tmp_path / "workload.safetensors")
    assert (read.prompt_tokens, read.replay) == (PROMPT, True)
    assert torch.equal(read.tokens, workload.tokens)
    assert torch.equal(read.expert_ids, workload.expert_ids)


def test_passes_take_every_token_but_the_last_once(workload: Any) -> None:
    columns = [column for part in workload.passes() for column in range(part.start, part.stop)]
    assert columns == list(range(PROMPT + NEW - 1))
    assert len(list(workload.passes())) == workload.new_tokens


def rows_between(suite: SimpleNamespace, plan: Any, workload: Any) -> Any:
    """int64 [R, R], over all passes and layers."""
    return sum(exchange.rows for exchange in suite.prediction.exchanges_of(plan, workload))


def test_many_rows_come_after_their_numbers(
    workload: Any, plan: Any, suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = suite.prediction.Wire(hidden_size=64, top_k=TOP_K, dtype=torch.bfloat16, mtu=9000)
    exchanges = suite.prediction.exchanges_of(plan, workload)
    most = [int((exchange.rows * (1 - np.eye(4, dtype=int))).max()) for exchange in exchanges]
    monkeypatch.setattr(suite.prediction, "MOST_BYTES", sorted(most)[len(most) // 2] * wire.row_bytes)
    messages = [exchange.num_messages(wire) for exchange in exchanges]
    assert messages == [2 if rows <= sorted(most)[len(most) // 2] else 3 for rows in most]
    assert set(messages) == {2, 3}
    told_before = [replace(exchange, told_before=True).num_messages(wire) for exchange in exchanges]
    assert set(told_before) == {3}


def test_rows_are_the_remote_copies_that_evaluate_counts(workload: Any, plan: Any, suite: SimpleNamespace) -> None:
    rows = rows_between(suite, plan, workload)
    metrics = mean_metrics(measure_plan(plan, workload.sample(slice(None))))
    # The prompt is the first half of a request's tokens: both see the same tokens when a request arrives.
    assert (rows.sum() - np.trace(rows)) / (REQUESTS * (PROMPT + NEW - 1) * LAYERS) == pytest.approx(
        metrics.remote_copies_per_token
    )


def test_relays_send_one_row_between_nodes_for_every_copy_that_evaluate_counts_there(
    workload: Any, plan: Any, suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = replace(plan.topology, intra_node_gb_per_s=4.0, inter_node_gb_per_s=1.0)
    relayed = replace(plan, topology=topology)
    monkeypatch.setattr(suite.prediction, "FEWEST_TOKENS", 1)
    assert len(suite.prediction.exchanges_of(relayed, workload)) == 2 * NEW * LAYERS
    rows = rows_between(suite, relayed, workload)
    between = rows[:2, 2:].sum() + rows[2:, :2].sum()
    metrics = mean_metrics(measure_plan(plan, workload.sample(slice(None))))
    assert between / (REQUESTS * (PROMPT + NEW - 1) * LAYERS) == pytest.approx(metrics.internode_copies_per_token)
    direct = rows_between(suite, plan, workload)
    assert between < direct[:2, 2:].sum() + direct[2:, :2].sum()
    # The prompts alone are so many.
    monkeypatch.setattr(suite.prediction, "FEWEST_TOKENS", REQUESTS * PROMPT)
    assert len(suite.prediction.exchanges_of(relayed, workload)) == (NEW + 1) * LAYERS
    monkeypatch.setattr(suite.prediction, "FEWEST_TOKENS", REQUESTS * PROMPT + 1)
    assert np.array_equal(rows_between(suite, relayed, workload), direct)


def test_bytes_are_those_of_rows_counts_and_frames(workload: Any, plan: Any, suite: SimpleNamespace) -> None:
    wire = suite.prediction.Wire(hidden_size=64, top_k=TOP_K, dtype=torch.bfloat16, mtu=9000)
    assert wire.copy_bytes == 128 + 32 + 128
    found = suite.prediction.predict(plan, workload, wire, plan.topology.node_of_rank)
    metrics = mean_metrics(measure_plan(plan, workload.sample(slice(None))))
    assert found.evaluate_copies == pytest.approx(metrics.remote_copies_per_token)
    assert found.internode_copies == pytest.approx(metrics.internode_copies_per_token)
    rows = rows_between(suite, plan, workload)
    assert found.rows_bytes == (rows.sum() - np.trace(rows)) * wire.copy_bytes
    told = NEW * 4 * 3 * LAYERS * 64
    plain = found.rows_bytes + told
    messages = NEW * 4 * 3 * LAYERS * 2
    assert found.wire_bytes == plain + suite.prediction.frame_bytes(plain, messages, 9000)
    # Between the nodes of two: eight of the twelve ways from process to process.
    plain = (rows[:2, 2:].sum() + rows[2:, :2].sum()) * wire.copy_bytes + told * 8 // 12
    assert found.node_bytes == plain + suite.prediction.frame_bytes(plain, messages * 8 // 12, 9000)


def test_split_heads_move_what_the_all_reduce_moved_and_by_node_a_token_crosses_twice(
    workload: Any, plan: Any, suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = suite.prediction.Wire(hidden_size=64, top_k=TOP_K, dtype=torch.bfloat16, mtu=9000)
    monkeypatch.setattr("specmoe.runtime.shuffle.FEWEST_BYTES", 1)
    split = replace(plan, attention="tp", token_affinity=None)
    slow = replace(split, topology=replace(plan.topology, intra_node_gb_per_s=4.0, inter_node_gb_per_s=1.0))
    flat, by_node = (suite.prediction.shuffled_rows(each, workload, wire) for each in (split, slow))
    tokens = REQUESTS * (PROMPT + NEW - 1) * LAYERS
    assert not suite.prediction.shuffled_rows(plan, workload, wire).any()
    for rows in (flat, by_node):
        assert rows.sum() - np.trace(rows) == 2 * 3 * tokens
    assert flat[:2, 2:].sum() + flat[2:, :2].sum() == 4 * tokens
    assert by_node[:2, 2:].sum() + by_node[2:, :2].sum() == 2 * tokens
    assert suite.prediction.num_shuffles(slow, workload, wire) == 2 * suite.prediction.num_shuffles(
        split, workload, wire
    )
    # The prompts alone have so many bytes.
    monkeypatch.setattr("specmoe.runtime.shuffle.FEWEST_BYTES", REQUESTS * PROMPT * 128)
    prompts = suite.prediction.shuffled_rows(slow, workload, wire)
    assert by_node[:2, 2:].sum() < prompts[:2, 2:].sum() < flat[:2, 2:].sum()


def test_a_replayed_router_answers_with_what_was_recorded(workload: Any, suite: SimpleNamespace) -> None:
    routers = [SimpleNamespace(num_experts=EXPERTS, forward=None) for _ in range(LAYERS)]
    replay = suite.replay.Replay(routers, own_of=lambda values: values[1::2])
    replay.begin_forward(workload.expert_ids[:, :PROMPT])
    _, weights, index = routers[2].forward(torch.zeros((16, 8)))
    assert torch.equal(index, workload.expert_ids[:, :PROMPT, 2].flatten(0, 1).long()[1::2])
    assert torch.equal(weights.sum(dim=1), torch.ones(16))


@pytest.mark.parametrize(
    ("seconds", "median", "rounds"), [((3.0, 1.0, 2.0), 2.0, 3), ((9.0, 4.0, 1.0), 4.0, 2), ((13.0, 1.0), 13.0, 1)]
)
def test_the_round_of_median_time_counts_and_slow_cases_are_repeated_less(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], median: float, rounds: int
) -> None:
    served = iter(seconds)
    monkeypatch.setattr(suite.rank_program, "serve", lambda *_: {"seconds": next(served)})
    found = suite.rank_program.median_round(None, None, {"rounds": 3, "interface": "lo"})
    assert found == {"seconds": median, "rounds": rounds}


def result(placement: str, speed: str, seconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "model": "demo", "scenario": "a", "title": "equal links", "attention": "dp", "placement": placement,
        "case": f"dp: {placement}", "speed": speed, "is_free": speed == "free", "seconds": seconds,
        "tokens_per_second": 100 / seconds, "first_token_seconds": seconds / 2, "seconds_per_decoded_token": 0.1,
        "prefill_tokens_per_second": 10.0, "decode_tokens_per_second": 5.0, "wire_bytes_of_rank": [250] * 4,
        "node_wire_bytes": 0, "predicted_wire_bytes": 1000, "equal_tokens": 9, "compared_tokens": 9,
        "logit_error": 1e-6, "evaluate_copies_per_token": 2.0, "remote_copies_per_token": 2.0,
    } | changes  # fmt: skip


def test_gains_are_over_linear_on_the_same_links(suite: SimpleNamespace) -> None:
    results = [
        result("linear", "free", 1.0), result("specmoe", "free", 0.9),
        result("linear", "10", 5.0), result("specmoe", "10", 2.5),
    ]  # fmt: skip
    assert suite.verdict.gain(results[3], results) == 2.0
    assert suite.verdict.link_share(results[2], results) == pytest.approx(0.8)
    (best,) = suite.verdict.best_gains(results)
    assert (best["placement"], best["speed"], best["gain"], best["reached"]) == ("specmoe", "10", 2.0, True)
    assert best["gain_over_linear_told"] is None
    table = suite.tables.to_markdown(results)
    assert "told of the nodes" not in table
    assert "| 10 | specmoe | 2.000 | 2.000 |  | 0.0 | +0.0% |  | 1.25 | 0.100 | 10 | 5 | 64% | 2.00 |" in table


def test_what_knowing_the_nodes_alone_gains_is_not_credited_to_the_placement(suite: SimpleNamespace) -> None:
    told = "specmoe, told of the nodes"
    results = [
        result("linear", "10", 5.0), result("linear, told of the nodes", "10", 4.0), result(told, "10", 2.5),
    ]  # fmt: skip
    (best,) = suite.verdict.best_gains(results)
    assert (best["placement"], best["gain"], best["gain_over_linear_told"]) == (told, 2.0, 1.6)
    assert "| specmoe, told of the nodes | 10 | 2.00 | 1.60 | 1.5 |" in suite.tables.to_markdown(results)


def test_of_several_runs_the_last_that_measured_a_model_is_published(
    suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SUITE.parent))
    wide = result("linear", "10", 7.0, model="wide")
    runs = [
        {"command": "first", "seconds": 5, "results": [result("linear", "10", 5.0), wide]},
        {"command": "second", "seconds": 3, "results": [result("linear", "10", 4.0)]},
    ]
    record = import_module("publish_runtime").merged(runs)
    assert [(one["model"], one["seconds"]) for one in record["results"]] == [("wide", 7.0), ("demo", 4.0)]
    assert (record["command"], record["seconds"]) == ("first; second", 8)
    assert import_module("publish_runtime").merged(runs[1:])["command"] == "second"


BROKEN = {
    "more bytes than predicted": ({"wire_bytes_of_rank": [270] * 4}, "bytes on the wire"),
    "more bytes between nodes": ({"node_wire_bytes": 600, "predicted_node_bytes": 500}, "bytes between nodes"),
    "another token": ({"equal_tokens": 8}, "tokens"),
    "other logits": ({"logit_error": 1e-3}, "logits"),
}


@pytest.mark.parametrize(("changes", "what"), BROKEN.values(), ids=BROKEN.keys())
def test_what_must_hold_is_told_where_it_does_not(suite: SimpleNamespace, changes: dict[str, Any], what: str) -> None:
    good = [result("linear", "free", 1.0), result("linear", "10", 5.0)]
    assert all(item["holds"] for item in suite.verdict.judge(good))
    judged = suite.verdict.judge([*good, result("specmoe", "10", 2.0, **changes)])
    (failed,) = [item for item in judged if not item["holds"]]
    assert what in failed["what"]


def test_a_baseline_that_cannot_run_is_named_with_its_reason(suite: SimpleNamespace) -> None:
    missing = {key: value for key, value in result("DeepSpeed", "10", 1.0).items() if key in {
        "model", "scenario", "title", "attention", "placement", "case", "speed", "is_free"
    }}  # fmt: skip
    table = suite.tables.to_markdown([result("linear", "10", 5.0), missing | {"cannot_run": "ImportError: no such"}])
    assert "DeepSpeed cannot run here: ImportError: no such" in table


def test_without_namespaces_no_bytes_are_told_and_none_are_demanded(suite: SimpleNamespace) -> None:
    results = [result("linear", "unshaped", 5.0, is_free=True), result("specmoe", "unshaped", 4.0, is_free=True)]
    assert not any("bytes" in item["what"] for item in suite.verdict.judge(results))
    assert "| unshaped | specmoe | 2.000 | 2.000 |  |  |  |  | 2.00 |" in suite.tables.to_markdown(results)


def test_a_machine_that_cannot_make_namespaces_says_so(suite: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with (
        pytest.raises(suite.network.NamespaceError, match="namespaces cannot be made here"),
        suite.network.Network((4,)),
    ):
        pass


def test_slower_ranks_are_told_only_to_the_plan_that_weighs_them(suite: SimpleNamespace) -> None:
    keys = [scenario.key for scenario in suite.layouts.scenarios((10.0,), 100.0, (10.0, 5.0))]
    assert keys == ["a", "b", "c"]
    first, second, third = suite.layouts.scenarios((10.0,), 100.0, (10.0, 5.0))
    assert first.speeds[0].label == second.speeds[0].label == "free"
    assert second.speeds[2].label == "100, 5 between nodes"
    assert second.topology.inter_node_gb_per_s == pytest.approx(5 / 8000)
    assert third.slowdowns == (1.0, 1.0, 3.0, 3.0)
    assert third.topology.relative_speed == (3.0, 3.0, 1.0, 1.0)
