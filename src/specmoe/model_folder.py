"""Find a model's folder: a checkpoint folder as given, or a name on the Hugging Face hub, downloaded."""

import re
from pathlib import Path

from specmoe.errors import CheckpointError

# Weights in the top folder only: some repositories keep a second copy in a sub-folder.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
UNWANTED = ["*/*"]


def model_folder(model: str | Path) -> Path:
    """The folder of `model`; raises `CheckpointError` for what is neither a folder nor a model on the hub."""
    path = Path(model)
    if path.is_dir() or path.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model)):
        return path  # opening the checkpoint says what is wrong with it
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(model), allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model} is neither a folder here nor a model that the Hugging Face hub hands out: {reason}"
        ) from error
