"""`specmoe profile` on the command line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    arguments = ("profile", tmp_path / "no-model", "--data", *text, "-o", text[1], "--force")
    assert "it is read for this very output" in command_line(*arguments)[2]


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


def test_two_processes_under_torchrun_write_what_one_writes(command_line, tiny_checkpoint, text, tmp_path) -> None:
    words = ["profile", tiny_checkpoint, "--data", *text, "--batch-tokens", 8, "--max-length", 5, "--json", "-o"]
    assert command_line(*words, tmp_path / "one")[0] == 0
    done = torchrun(2, *words, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    assert (numbers["processes"], numbers["tokens"]) == (2, 24)
    assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


def torchrun(processes: int, *words: object) -> "subprocess.CompletedProcess[str]":
    script = Path(sys.executable).with_name("specmoe")
    # Standalone: a port of its own, as other tests start torchrun at the same time.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command = [*launcher, "--no-python", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [str(word) for word in (*command, *words)], env=environment, capture_output=True, text=True, timeout=200
    )


def test_ctrl_c_writes_what_there_is_and_resume_the_rest(command_line, tiny_checkpoint, text, tmp_path) -> None:
    from specmoe.profiler import record_share

    words = ["profile", tiny_checkpoint, "--data", *text, "--batch-tokens", 1, "--max-length", 4, "--json", "-o"]
    assert command_line(*words, tmp_path / "whole")[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        run = record_share._run_and_record

        def interrupted(*arguments: Any) -> None:
            run(*arguments)
            signal.raise_signal(signal.SIGINT)

        patch.setattr(record_share, "_run_and_record", interrupted)
        code, out, _ = command_line(*words, tmp_path / "p")
    numbers = json.loads(out)
    assert (code, numbers["tokens"]) == (0, 4)
    assert numbers["seen_share"] == RoutingProfile.load(tmp_path / "p").seen_share == round(4 / 24, 4)
    code, _, err = command_line(*words, tmp_path / "p")
    assert (code, "--resume" in err) == (1, True)
    code, out, _ = command_line(*words, tmp_path / "p", "--resume")
    assert (code, json.loads(out)["tokens"]) == (0, 24)
    assert (tmp_path / "p").read_bytes() == (tmp_path / "whole").read_bytes()


def test_generated_tokens_weights_and_domains_are_summed_up(command_line, tiny_checkpoint, text, tmp_path) -> None:
    words = ["profile", tiny_checkpoint, "--data", *text, "--weights", 1, 2, "--max-length", 3, "--generate", 2]
    code, out, _ = command_line(*words, "-o", tmp_path / "p", "--json")
    numbers = json.loads(out)
    assert code == 0
    assert numbers["domains"] == {str(text[0]): 15, str(text[1]): 20}
    assert (numbers["tokens"], numbers["decode_tokens"]) == (35, 14)
    assert numbers["run_seconds"] < numbers["seconds"]
    assert 35 / numbers["tokens_per_second"] == pytest.approx(numbers["run_seconds"], abs=1e-3)
    code, out, _ = command_line(*words, "-o", tmp_path / "q")
    assert "35, 14 of them generated" in out
    assert "b.jsonl: 20" in out


def test_a_device_map_may_come_from_a_file(command_line, tiny_checkpoint, text, tmp_path) -> None:
    device_map = tmp_path / "map.json"
    device_map.write_text('{"": "cpu"}')
    words = ["profile", tiny_checkpoint, "--data", *text, "-o", tmp_path / "p", "--device-map", device_map]
    assert command_line(*words)[0] == 0
    for content in ("[1]", "{", '{"a": []}'):
        device_map.write_text(content)
        code, _, err = command_line(*words, "--force")
        assert (code, "map.json" in err, "device map" in err) == (1, True, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generate", "0"], "generate is 0"),
        (["--checkpoint-minutes", "-1"], "checkpoint_minutes is -1"),
        (["--weights", "1"], "1 weights for 2 data files"),
        (["--offload-folder", "x"], "give device_map with it"),
    ],
)
def test_a_wrong_option_is_named(words, message, command_line, tiny_checkpoint, text, tmp_path) -> None:
    code, out, err = command_line("profile", tiny_checkpoint, "--data", *text, "-o", tmp_path / "p", *words)
    assert (code, out) == (2, "")
    assert message in err
