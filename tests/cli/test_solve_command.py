"""`specmoe solve`: a plan file and a short result, JSON for programs, one sentence for mistakes."""

import json
import os
import re
import signal
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from specmoe.cli.interrupt import first_interrupt
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample


@pytest.fixture
def profile_path(tmp_path):
    rng = np.random.default_rng(0)
    topic = np.repeat(rng.integers(2, size=30), 40)
    score = rng.gumbel(size=(len(topic), 2, 8)) + 3.0 * (np.arange(8)[None, None] % 2 == topic[:, None, None])
    expert_ids = np.argsort(-score, axis=2)[:, :, :2].astype(np.uint8)
    counts = np.stack([np.bincount(expert_ids[:, layer].ravel(), minlength=8) for layer in range(2)])
    profile = RoutingProfile(
        layer_ids=np.array([1, 3], dtype=np.int32),
        expert_counts=counts.astype(np.int64),
        num_logical_experts=8,
        top_k=2,
        num_tokens=len(topic),
        vocab_size=20,
        sample=RoutingSample(
            expert_ids=expert_ids,
            token_ids=(10 * topic + rng.integers(10, size=len(topic))).astype(np.int32),
            request_ids=np.repeat(np.arange(30), 40).astype(np.int32),
        ),
    )
    path = tmp_path / "routing.profile"
    profile.save(path)
    return path


def test_it_writes_a_plan_and_shows_what_was_gained(command_line, profile_path, tmp_path):
    code, out, _ = command_line(
        "solve", profile_path, "-o", tmp_path / "a.plan", "--ep-size", 2, "--max-imbalance", 1.2
    )
    assert code == 0
    assert "remote copies per token" in out
    assert "against linear" in out
    assert re.search(r"load imbalance +1\.\d+ mean over layers \(linear's \d\.\d+\)", out)
    assert "Ctrl-C" not in out
    low, expected, high = expected_range(out)
    assert 0.0 < low < expected < high
    plan = PlacementPlan.load(tmp_path / "a.plan")
    assert plan.token_affinity is not None
    assert plan.layer_ids.tolist() == [1, 3]


def expected_range(out):
    """The least, expected and most copies on other requests that the command has shown."""
    shown = re.search(r"([\d.]+) expected on other requests, ([\d.]+) to ([\d.]+) in 19 of 20 cases", out)
    return float(shown[2]), float(shown[1]), float(shown[3])


def test_one_request_alone_is_no_range(command_line, profile_path, tmp_path):
    profile = RoutingProfile.load(profile_path)
    alone = replace(profile.sample, request_ids=np.zeros(profile.num_tokens, dtype=np.int32))
    replace(profile, sample=alone).save(tmp_path / "one.profile")
    arguments = ("--ep-size", 2, "--attention", "tp", "--best-effort")
    code, out, _ = command_line("solve", tmp_path / "one.profile", "-o", tmp_path / "a.plan", *arguments)
    assert code == 0
    assert re.search(r"\d expected on other requests$", out, flags=re.MULTILINE)


def test_json_holds_the_result(command_line, profile_path, tmp_path):
    arguments = ("--ep-size", 2, "--attention", "tp", "--extra-slots", 1, "--max-imbalance", 1.2, "--json")
    code, out, _ = command_line("solve", profile_path, "-o", tmp_path / "a.plan", *arguments)
    assert code == 0
    result = json.loads(out)
    assert result["objective"] < result["linear_objective"]
    assert result["linear_load_imbalance"] >= 1
    assert result["stopped"] is False
    assert result["plan_digest"] == PlacementPlan.load(tmp_path / "a.plan").digest


def test_a_topology_file_replaces_the_number_of_ranks(command_line, profile_path, tmp_path):
    (tmp_path / "two.json").write_text('{"ranks_per_node": [1, 1], "slots": [5, 4]}', encoding="utf-8")
    arguments = ("--topology", tmp_path / "two.json", "--max-imbalance", 1.3)
    assert command_line("solve", profile_path, "-o", tmp_path / "a.plan", *arguments)[0] == 0
    assert PlacementPlan.load(tmp_path / "a.plan").rank_of_physical.tolist() == [0] * 5 + [1] * 4


def test_unequal_links_and_ranks_are_named_in_the_result(command_line, profile_path, tmp_path):
    links = '"intra_node_gb_per_s": 100, "inter_node_gb_per_s": 20'
    (tmp_path / "two.json").write_text(f'{{"ranks_per_node": [1, 1], {links}, "relative_speed": [1, 1.2]}}')
    arguments = ("--topology", tmp_path / "two.json", "--max-imbalance", 1.3)
    code, out, _ = command_line("solve", profile_path, "-o", tmp_path / "a.plan", *arguments)
    assert code == 0
    assert "cost in remote copies" in out
    assert "weighed by its link" in out
    heaviest = PlacementPlan.load(tmp_path / "a.plan").predicted["heaviest_rank"]
    assert f"load over speed          {heaviest:.3f} at most" in out


def test_the_model_gives_ids_that_were_not_seen_a_row(command_line, profile_path, tiny_checkpoint, tmp_path):
    profile = RoutingProfile.load(profile_path)
    replace(profile, vocab_size=40).save(tmp_path / "wide.profile")
    arguments = ("--ep-size", 2, "--attention", "tp", "--max-imbalance", 1.3)
    for name, model in (("without", ()), ("with", ("--model", tiny_checkpoint))):
        path = tmp_path / f"{name}.plan"
        assert command_line("solve", tmp_path / "wide.profile", "-o", path, *arguments, *model)[0] == 0
        unknown = (PlacementPlan.load(path).token_to_rank[:, 20:] == -1).all()
        assert unknown == (name == "without")
    replace(profile, model_fingerprint="0" * 64).save(tmp_path / "other.profile")
    code, _, err = command_line(
        "solve", tmp_path / "other.profile", "-o", tmp_path / "x", *arguments, "--model", tiny_checkpoint
    )
    assert code == 1
    assert "another model" in err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ((), 2, "--ep-size or --topology"),
        (("--ep-size", 0), 2, "ep_size is 0, at least 1 was expected"),
        (("--ep-size", 9), 2, "ep_size is 9, at most one rank per expert"),
        (("--ep-size", 2, "--method", "magic"), 2, "method is 'magic'"),
        (("--ep-size", 2, "--group-limited"), 2, "group_limited needs expert_groups"),
        (("--ep-size", 2, "--group-limited", "--expert-groups", 3), 2, "8 experts do not divide into 3 groups"),
        (("--ep-size", 2, "--group-limited", "--expert-groups", 2, "--extra-slots", 1), 2, "2 too many"),
        (("--ep-size", 8, "--max-imbalance", 1.0), 1, "above the cap of 1"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_plan(command_line, profile_path, tmp_path, arguments, exit_code, message):
    code, _, err = command_line("solve", profile_path, "-o", tmp_path / "a.plan", *arguments)
    assert code == exit_code
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "a.plan").exists()


def test_an_existing_plan_is_kept_unless_forced(command_line, profile_path, tmp_path):
    (tmp_path / "a.plan").write_text("precious", encoding="utf-8")
    code, _, err = command_line("solve", profile_path, "-o", tmp_path / "a.plan", "--ep-size", 2)
    assert code == 1
    assert "exists already" in err
    assert (tmp_path / "a.plan").read_text(encoding="utf-8") == "precious"


def test_the_first_interrupt_asks_to_stop_and_the_second_interrupts():
    with first_interrupt() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_plan_that_an_interrupt_cut_short_says_so(command_line, profile_path, tmp_path, monkeypatch):
    @contextmanager
    def at_once():
        event = threading.Event()
        event.set()
        yield event

    monkeypatch.setattr("specmoe.cli.interrupt.first_interrupt", at_once)
    arguments = ("--ep-size", 2, "--max-imbalance", 1.9)
    code, out, _ = command_line("solve", profile_path, "-o", tmp_path / "a.plan", *arguments)
    assert code == 0
    assert "stopped by Ctrl-C" in out
    _, out, _ = command_line("solve", profile_path, "-o", tmp_path / "b.plan", *arguments, "--json")
    assert json.loads(out)["stopped"] is True


def test_an_ignored_interrupt_stays_ignored():
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with first_interrupt() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked.is_set()
    finally:
        signal.signal(signal.SIGINT, usual)


def test_the_profile_is_not_replaced_by_its_plan(command_line, profile_path, tmp_path):
    before = profile_path.read_bytes()
    (tmp_path / "link").symlink_to(profile_path)
    for output in (profile_path, tmp_path / "link"):
        code, _, err = command_line("solve", profile_path, "-o", output, "--ep-size", 2, "--force")
        assert code == 1
        assert "it is read for this very output" in err
    assert profile_path.read_bytes() == before
