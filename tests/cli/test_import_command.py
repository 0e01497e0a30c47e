"""`specmoe import` on the command line."""

import json

import numpy as np
import pytest

from specmoe.profiler.routing_profile import RoutingProfile


@pytest.fixture
def trace(tmp_path):
    """A trace of 3 tokens."""
    ids = np.array([[[0, 1]], [[2, 0]], [[0, 3]]], dtype=np.uint8)
    np.savez(tmp_path / "trace.npz", expert_ids=ids, num_experts=4)
    return tmp_path / "trace.npz"


def test_a_trace_becomes_a_profile_and_a_summary(command_line, trace, tmp_path) -> None:
    code, out, err = command_line("import", trace, "--from", "npz", "-o", tmp_path / "p", "--json")
    assert (code, err) == (0, "")
    numbers = json.loads(out)
    assert (numbers["tokens"], numbers["layers"], numbers["experts"], numbers["top_k"]) == (3, 1, 4, 2)
    assert numbers["hottest_expert"] == 2.0
    assert numbers["profile_fingerprint"] == RoutingProfile.load(tmp_path / "p").fingerprint


def test_the_table_is_for_people(command_line, trace, tmp_path) -> None:
    code, out, _ = command_line("import", trace, "--from", "npz", "-o", tmp_path / "p")
    assert code == 0
    assert "1 MoE layers, 4 experts, top-2" in out


def test_an_existing_output_is_kept_unless_forced(command_line, trace, tmp_path) -> None:
    (tmp_path / "p").write_text("mine")
    code, _, err = command_line("import", trace, "--from", "npz", "-o", tmp_path / "p")
    assert code == 1
    assert "exists already" in err
    assert (tmp_path / "p").read_text() == "mine"
    assert command_line("import", trace, "--from", "npz", "-o", tmp_path / "p", "--force")[0] == 0
    assert "it is read for" in command_line("import", trace, "--from", "npz", "-o", trace, "--force")[2]


def test_a_bad_trace_is_one_sentence_and_writes_nothing(command_line, tmp_path) -> None:
    (tmp_path / "bad.npz").write_text("no")
    code, out, err = command_line("import", tmp_path / "bad.npz", "--from", "npz", "-o", tmp_path / "p")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_an_unknown_source_is_a_wrong_command_line(command_line, trace, tmp_path) -> None:
    assert command_line("import", trace, "--from", "csv", "-o", tmp_path / "p")[0] == 2


def test_requests_longer_than_the_sample_are_counted_in_the_summary(command_line, tmp_path) -> None:
    requests = np.repeat(np.arange(4, dtype=np.int32), [5, 1, 6, 2])
    ids = np.tile(np.array([[[0, 1]]], dtype=np.uint8), (14, 1, 1))
    np.savez(tmp_path / "trace.npz", expert_ids=ids, num_experts=4, request_ids=requests)
    words = ["import", tmp_path / "trace.npz", "--from", "npz", "--sample-tokens", 4]
    code, out, _ = command_line(*words, "-o", tmp_path / "p", "--json")
    assert (code, json.loads(out)["too_long_requests"], json.loads(out)["tokens_in_sample"]) == (0, 2, 3)
    assert RoutingProfile.load(tmp_path / "p").too_long_requests == 2
    _, out, _ = command_line(*words, "-o", tmp_path / "q")
    assert "2 requests, each longer than the sample; raise --sample-tokens" in out
    _, out, _ = command_line("import", tmp_path / "trace.npz", "--from", "npz", "-o", tmp_path / "r", "--json")
    assert json.loads(out)["too_long_requests"] == 0


def test_what_no_memory_is_left_for_is_one_sentence(command_line, trace, tmp_path, monkeypatch) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 64.0 GiB")

    monkeypatch.setattr("specmoe.profiler.import_record.import_record", too_large)
    code, _, err = command_line("import", trace, "--from", "npz", "-o", tmp_path / "p")
    assert (code, err.count("\n")) == (1, 1)
    assert "there is not enough memory (Unable to allocate 64.0 GiB)" in err
