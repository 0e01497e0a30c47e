"""The guides' commands, copied from the pages and run on a tiny model."""

import json
import re
import shlex
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[2] / "docs/guides"
# A tiny model has neither eight ranks' worth of experts nor an even load.
TINY = {"--ep-size": "2", "--max-new-tokens": "2"}
UNEVEN = ["--max-imbalance", "1.9"]


def commands(page: Path) -> list[list[str]]:
    """The `specmoe` commands of the page's bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("specmoe ")]


def on_tiny(arguments: list[str], model: Path) -> list[str]:
    """The same command for a model of 8 experts."""
    tiny = [str(model) if word == "MODEL" else word for word in arguments]
    for option, value in TINY.items():
        if option in tiny:
            tiny[tiny.index(option) + 1] = value
    return tiny + UNEVEN if tiny[0] == "solve" else tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, letters in (("fit", "abcdefghijkl"), ("heldout", "mnopqrstuvwx")):
        lines = [json.dumps({"text": (letter + "the cat sat. ") * 3}) for letter in letters]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


PAGES = [page for page in sorted(GUIDES.glob("*.md")) if commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_guides_commands_work_as_they_stand(page, folder, tiny_checkpoint, command_line):
    for arguments in commands(page):
        code, _, error = command_line(*on_tiny(arguments, tiny_checkpoint))
        assert code == 0, f"specmoe {' '.join(arguments)}: {error}"


def test_there_are_guides_with_commands():
    assert len(PAGES) >= 5


@pytest.mark.parametrize("page", sorted(GUIDES.parent.rglob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target}"
