"""What transformers raises for files that it cannot use is one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from specmoe.errors import CheckpointError, UsageError
from specmoe.pretrained import UnknownModelError, load_tokenizer, read_config, reading_with_transformers


def write_config(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_configuration_is_read(tmp_path: Path) -> None:
    assert read_config(write_config(tmp_path, model_type="olmoe", hidden_size=48)).hidden_size == 48


def test_a_kind_of_model_that_transformers_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="no model of type 'kimi_k2'"):
        read_config(write_config(tmp_path, model_type="kimi_k2"))


def test_code_inside_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("raise SystemExit(3)")
    with pytest.raises(CheckpointError, match="config that transformers cannot read"):
        read_config(write_config(tmp_path, auto_map={"AutoConfig": "code.Config"}))


def test_a_configuration_of_wrong_types_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config that transformers cannot read"):
        read_config(write_config(tmp_path, model_type="olmoe", hidden_size="wide"))


def test_a_folder_without_tokenizer_files_is_refused_and_no_empty_tokenizer_made_up(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(write_config(tmp_path, model_type="olmoe"))


def test_sentences_of_our_own_pass_unchanged() -> None:
    with pytest.raises(UsageError, match=r"^mine$"), reading_with_transformers("no"):
        raise UsageError("mine")


@pytest.mark.parametrize("error", [OSError("why\nmore"), KeyError("why"), RuntimeError("why"), AttributeError("why")])
def test_errors_of_transformers_become_one_line(error: Exception) -> None:
    with (
        pytest.raises(CheckpointError, match=r"^FOLDER cannot be loaded: '?why'?$"),
        reading_with_transformers("FOLDER cannot be loaded"),
    ):
        raise error
