"""The tokenizer that travels with a checkpoint."""

from pathlib import Path
from typing import Any

from specmoe.errors import CheckpointError


def load_tokenizer(folder: Path) -> Any:
    """The Hugging Face tokenizer in `folder`; raises `CheckpointError` when there is none or it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{folder} has no tokenizer that transformers can read: {reason}") from error
