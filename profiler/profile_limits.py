"""How long requests, batches and the whole run may be."""

from dataclasses import dataclass
from typing import Any

import torch

from specmoe.errors import UsageError

MAX_LENGTH = 2048
BATCH_TOKENS = {"cpu": 4096, "cuda": 16_384}


@dataclass(frozen=True, kw_only=True)
class ProfileLimits:
    """In tokens, None where the user named none; raises `UsageError` for one below 1."""

    max_length: int | None
    batch_tokens: int | None
    max_tokens: int | None
    sample_tokens: int

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_tokens", "max_tokens", "sample_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, at least 1 was expected")

    def length_for(self, model: Any) -> int:
        """The longest request; raises `UsageError` for more than `model` can take."""
        most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or MAX_LENGTH
        if self.max_length is not None and self.max_length > most:
            raise UsageError(f"max_length is {self.max_length}, the model takes at most {most}")
        return self.max_length or min(MAX_LENGTH, most)

    def batch_tokens_for(self, device: torch.device) -> int:
        """Tokens of a forward pass, padding included."""
        return self.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
