"""A model is a folder here or a name on the hub, of which all that is needed is downloaded and no second copy."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from specmoe.errors import CheckpointError
from specmoe.model_folder import model_folder
from specmoe.placement.reshard.sidecars import find_sidecars


def test_a_folder_that_is_there_is_taken_as_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("someone/model").mkdir(parents=True)
    assert model_folder("someone/model") == Path("someone/model")


def test_all_that_reshard_copies_is_downloaded_and_no_second_copy_of_the_weights(tmp_path, monkeypatch) -> None:
    sidecars = ["LICENSE", "additional_chat_templates/rag.jinja", "config.json", "qwen.tiktoken", "tokenizer.model"]
    (tmp_path / "additional_chat_templates").mkdir()
    for name in sidecars:
        (tmp_path / name).touch()
    assert find_sidecars(tmp_path) == sidecars
    on_the_hub = [*sidecars, "model.safetensors", "original/model.safetensors", "original/params.json", "model.bin"]
    downloaded: list[str] = []

    def download(name: str, **patterns: list[str]) -> str:
        downloaded.extend(filter_repo_objects(on_the_hub, **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert model_folder("someone/model") == tmp_path
    assert downloaded == [*sidecars, "model.safetensors"]


def test_what_the_hub_does_not_have_is_one_sentence(monkeypatch) -> None:
    def absent(name: str, **_: object) -> str:
        raise OSError(f"no such model\n{name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    with pytest.raises(CheckpointError, match=r"neither a folder here nor a model .* hands out: no such model$"):
        model_folder("someone/model")
