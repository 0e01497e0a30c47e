"""Which files of a checkpoint folder are copied beside the weights: configuration, tokenizer, templates, licence.

Chosen by kind, never by reading them. Weights in other formats, the weight index and earlier compilations stay behind.
Python files of a model with its own code are copied like any other text: the output names them in its configuration
as the source does, specmoe never runs them, and loaders run them only where the user asks for it.
"""

import os
from pathlib import Path

from specmoe.checkpoint import INDEX_FILE, safe_file
from specmoe.placement.reshard.manifest import MANIFEST_FILE

_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".bpe", ".py", ".md", ".yaml")
_NAMES = ("LICENSE", "LICENCE", "NOTICE")
_TEMPLATE_FOLDER = "additional_chat_templates"


def find_sidecars(folder: Path) -> list[str]:
    """Relative names of the files to copy, sorted; raises `CheckpointError` for a link that leads out of `folder`."""
    names = [entry.name for entry in os.scandir(folder) if _is_sidecar(entry.name) and not entry.is_dir()]
    templates = folder / _TEMPLATE_FOLDER
    if templates.is_dir() and not templates.is_symlink():
        names += [
            f"{_TEMPLATE_FOLDER}/{entry.name}" for entry in os.scandir(templates) if entry.name.endswith(".jinja")
        ]
    for name in names:
        safe_file(folder, name)
    return sorted(name for name in names if name.isprintable() and "\\" not in name)


def _is_sidecar(name: str) -> bool:
    if name in (MANIFEST_FILE, INDEX_FILE) or name.endswith(".index.json") or name.startswith("."):
        return False
    return name.endswith(_SUFFIXES) or name.startswith(_NAMES)
