"""`specmoe generate` on one process and, under torchrun, on two."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from specmoe.cli.commands.generate_command import DIVISIONS, DTYPES, LEVELS, OVERFLOWS
from specmoe.cli.prompt_bar import prompt_bar
from specmoe.errors import ArtifactError
from specmoe.kernels.capacity.capacity import CapacityLevel, Overflow
from specmoe.placement.capacity_quotas import Division
from specmoe.runtime.load import DTYPES as RUNTIME_DTYPES

PROMPTS = ["hello", "a", "abc", "xyz"]


@pytest.fixture(scope="module")
def expected(tiny_checkpoint):
    """What the unmodified model continues, by prompt: token ids and the logits after the prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, experts_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    answers = {}
    for prompt in PROMPTS:
        tokens = torch.tensor([tokenizer(prompt)["input_ids"]])
        new = model.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, tokens.shape[1] :]
        with torch.no_grad():
            answers[prompt] = (new.tolist(), model(tokens).logits[0, -1])
    return answers


def check_answers(printed, logits_file, expected):
    completions = json.loads(printed)["completions"]
    assert [item["prompt"] for item in completions] == PROMPTS
    logits = load_file(logits_file)["logits"]
    for item, row in zip(completions, logits, strict=True):
        token_ids, expected_row = expected[item["prompt"]]
        assert item["token_ids"] == token_ids
        torch.testing.assert_close(row, expected_row, rtol=1e-5, atol=1e-5)
    return completions


def arguments(compiled, logits_file):
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    return ["generate", compiled, *prompts, "--max-new-tokens", 8, "--json", "--logits", logits_file]


def test_one_process_answers_as_the_unmodified_model(command_line, compiled_tiny, expected, tmp_path):
    code, out, err = command_line(*arguments(compiled_tiny, tmp_path / "logits"))
    assert (code, err) == (0, ""), "no bar where there is no terminal"
    check_answers(out, tmp_path / "logits", expected)


def torchrun(processes, *words):
    script = Path(sys.executable).with_name("specmoe")
    # Standalone: a port of its own, as other tests start torchrun at the same time.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    command = [*launcher, "--no-python", script]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [str(word) for word in (*command, *words)], env=environment, capture_output=True, text=True, timeout=200
    )


def test_two_processes_under_torchrun_share_the_prompts_and_print_once(compiled_tiny, expected, tmp_path):
    done = torchrun(2, *arguments(compiled_tiny, tmp_path / "logits"))
    assert done.returncode == 0, done.stderr
    completions = check_answers(done.stdout, tmp_path / "logits", expected)
    assert {item["process"] for item in completions} == {0, 1}


@pytest.mark.parametrize(("own_error", "printed"), [(False, False), (True, True)], ids=["shared", "its own"])
def test_a_later_process_says_only_what_the_first_cannot_know(command_line, monkeypatch, tmp_path, own_error, printed):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(ArtifactError, "one_process_only", own_error)
    code, _, err = command_line("generate", tmp_path, "--prompt", "a")
    assert code == 1
    assert bool(err) == printed


def logits_with(command_line, compiled, path, *words):
    code, _, err = command_line("generate", compiled, "--prompt", "hello there", "--logits", path, "--json", *words)
    assert code == 0, err
    return load_file(path)["logits"]


def test_a_device_and_a_type_are_passed_on(command_line, compiled_tiny, tmp_path):
    exact = logits_with(command_line, compiled_tiny, tmp_path / "exact", "--device", "cpu", "--dtype", "float32")
    rounded = logits_with(command_line, compiled_tiny, tmp_path / "rounded", "--dtype", "bfloat16")
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0.1, atol=0.2 * float(exact.abs().max()))


def test_a_bar_shows_completed_prompts_on_a_terminal(command_line, monkeypatch, compiled_tiny):
    shown = []
    monkeypatch.setattr("specmoe.cli.commands.generate_command.prompt_bar", partial(recording_bar, shown))
    command_line("generate", compiled_tiny, "--prompt", "hello", "--prompt", "a", "--max-new-tokens", 2)
    assert shown == [False, (0, 2), (1, 2), (2, 2)]


@contextmanager
def recording_bar(shown, *, visible):
    shown.append(visible)
    yield lambda done, total: shown.append((done, total))


@pytest.mark.parametrize("visible", [True, False])
def test_the_bar_says_how_many_of_how_many(capsys, visible):
    with prompt_bar(visible=visible) as show:
        show(3, 7)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("3/7" in err) == visible


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_a_capacity_changes_the_answer_only_where_it_binds(command_line, compiled_tiny, tmp_path, level, overflow):
    free = logits_with(command_line, compiled_tiny, tmp_path / "free")
    words = ("--level", level, "--overflow", overflow, "--capacity")
    wide = logits_with(command_line, compiled_tiny, tmp_path / "wide", *words, 100)
    tight = logits_with(command_line, compiled_tiny, tmp_path / "tight", *words, 0.2)
    assert torch.equal(wide, free)
    assert not torch.allclose(tight, free, atol=1e-3)


def test_the_choices_are_those_of_the_runtime():
    assert (get_args(CapacityLevel), get_args(Overflow), get_args(Division)) == (LEVELS, OVERFLOWS, DIVISIONS)
    assert tuple(RUNTIME_DTYPES) == DTYPES


def test_the_help_says_that_decoding_is_greedy_and_a_capacity_lossy(command_line):
    _, out, _ = command_line("generate", "--help")
    assert "Decoding is greedy" in out
    assert "Lossy" in out


def test_a_generation_config_dropped_into_the_folder_is_refused(command_line, compiled_tiny, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(compiled_tiny, folder)
    (folder / "added.json").write_text(json.dumps({"suppress_tokens": list(range(1, 60))}))
    code, out, err = command_line("generate", folder, "--prompt", "a")
    assert (code, out) == (1, "")
    assert "added.json, which its manifest does not list" in err


def test_prompts_from_a_file_and_plain_text_output(command_line, compiled_tiny, tmp_path):
    (tmp_path / "prompts").write_text("hello\n\nabc\n", encoding="utf-8")
    code, out, _ = command_line(
        "generate", compiled_tiny, "--prompts-file", tmp_path / "prompts", "--max-new-tokens", 2
    )
    assert code == 0
    assert out.startswith("hello")
    assert "\n\nabc" in out


MISTAKES = {
    "no prompt": (["--max-new-tokens", "3"], 2, "there is no prompt"),
    "an empty prompt": (["--prompt", ""], 2, "prompt 0 has no tokens"),
    "a prompt that is no text": (["--prompt", "a\udcff"], 2, "prompt 0 is not UTF-8 text"),
    "a prompts file that is not there": (["--prompts-file", "/nowhere"], 1, "cannot be read as a text file"),
    "an existing logits file": (["--prompt", "a", "--logits", __file__], 1, "exists already"),
    "a device that is not there": (["--prompt", "a", "--device", "nowhere"], 2, "device nowhere cannot be used"),
    "an unknown type": (["--prompt", "a", "--dtype", "int3"], 2, "--dtype"),
    "no capacity": (["--prompt", "a", "--capacity", "0"], 2, "the capacity factor is 0.0"),
    "a level without a capacity": (["--prompt", "a", "--level", "device"], 2, "give --capacity FACTOR with them"),
    "an overflow without a capacity": (["--prompt", "a", "--overflow", "drop"], 2, "give --capacity FACTOR with them"),
    "a division without a capacity": (["--prompt", "a", "--division", "even"], 2, "give --capacity FACTOR with them"),
    "a division that the plan cannot make": (
        ["--prompt", "a", "--capacity", "1", "--division", "plan"],
        1,
        "capacity division 'plan' needs",
    ),
    "no new tokens": (["--prompt", "a", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
}


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence_and_an_exit_code(command_line, compiled_tiny, words, code, message):
    got, out, err = command_line("generate", compiled_tiny, *words)
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_a_folder_that_is_no_compiled_checkpoint_is_refused(command_line, tiny_checkpoint):
    code, _, err = command_line("generate", tiny_checkpoint, "--prompt", "a")
    assert code == 1
    assert "is not a compiled checkpoint" in err
