"""Find a model's folder: a checkpoint folder as given, or a name on the Hugging Face hub, downloaded."""

import re
from pathlib import Path

from specmoe.errors import CheckpointError

# Weights, and what reshard copies beside them. In the top folder only, but for chat templates: some repositories keep a
# second copy of the model in a sub-folder.
TEMPLATES = "*.jinja"
WANTED = [
    *(
        "*.safetensors",
        "*.json",
        TEMPLATES,
        "*.model",
        "*.txt",
        "*.tiktoken",
        "*.vocab",
        "*.bpe",
        "*.py",
        "*.md",
        "*.yaml",
    ),
    *("LICENSE*", "LICENCE*", "NOTICE*"),
]
UNWANTED = [f"*/{pattern}" for pattern in WANTED if pattern != TEMPLATES]


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
