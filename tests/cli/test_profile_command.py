"""`specmoe profile` on the command line."""

import json

import pytest

from specmoe.profiler.routing_profile import RoutingProfile


@pytest.fixture
def text(tmp_path):
    """Two files of text."""
    (tmp_path / "a.txt").write_text("some letters")
    (tmp_path / "b.jsonl").write_text('{"text": "more of them"}\n')
    return [tmp_path / "a.txt", tmp_path / "b.jsonl"]


def test_a_model_and_several_files_become_a_profile(command_line, tiny_checkpoint, text, tmp_path) -> None:
    code, out, err = command_line("profile", tiny_checkpoint, "--data", *text, "-o", tmp_path / "p", "--json")
    assert (code, err) == (0, "")
    numbers = json.loads(out)
    assert (numbers["tokens"], numbers["layers"], numbers["experts"], numbers["top_k"]) == (24, 2, 8, 3)
    assert numbers["output"] == str(tmp_path / "p")
    sample = RoutingProfile.load(tmp_path / "p").sample
    assert sample is not None
    assert sorted(set(sample.domain_ids.tolist())) == [0, 1]


def test_data_may_be_given_option_by_option(command_line, tiny_checkpoint, text, tmp_path) -> None:
    repeated = ["--data", text[0], "--data", text[1]]
    code, out, _ = command_line("profile", tiny_checkpoint, *repeated, "-o", tmp_path / "p")
    assert code == 0
    assert "24 tokens of 2 requests" in out


def test_an_existing_output_is_refused_before_the_model_is_loaded(command_line, text, tmp_path) -> None:
    (tmp_path / "p").write_text("mine")
    code, _, err = command_line("profile", tmp_path / "no-model", "--data", *text, "-o", tmp_path / "p")
    assert code == 1
    assert "exists already" in err
    assert (tmp_path / "p").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("{bad", "data.jsonl:1 is not JSON")],
    ids=["empty", "no JSON"],
)
def test_bad_data_is_one_sentence_and_writes_nothing(
    content: str, message: str, command_line, tiny_checkpoint, tmp_path
) -> None:
    (tmp_path / "data.jsonl").write_text(content)
    code, out, err = command_line("profile", tiny_checkpoint, "--data", tmp_path / "data.jsonl", "-o", tmp_path / "p")
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_a_missing_data_file_is_a_wrong_command_line(command_line, tiny_checkpoint, tmp_path) -> None:
    code, _, err = command_line("profile", tiny_checkpoint, "--data", tmp_path / "absent", "-o", tmp_path / "p")
    assert code == 2
    assert "does not exist" in err


def test_a_folder_that_is_no_checkpoint_is_one_sentence(command_line, text, tmp_path) -> None:
    code, _, err = command_line("profile", tmp_path, "--data", *text, "-o", tmp_path / "p")
    assert code == 1
    assert "not a Hugging Face checkpoint" in err
    assert err.count("\n") == 1
