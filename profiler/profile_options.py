"""What a caller may choose about a profile: where the model runs, what is read, how long requests and batches are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from specmoe.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SAMPLE_TOKENS = 262_144
MAX_LENGTH = 2048
BATCH_TOKENS = {"cpu": 4096, "cuda": 16_384}


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """The arguments of `specmoe.profile`, which says what each means; lengths are in tokens.

    Raises `UsageError` for a number below 1, or two devices at once.
    """

    device: str | torch.device | None = None
    device_map: str | Mapping[str, int | str] | None = None
    offload_folder: str | Path | None = None
    dtype: str = "auto"
    max_length: int | None = None
    batch_tokens: int | None = None
    max_tokens: int | None = None
    sample_tokens: int = SAMPLE_TOKENS
    generate: int | None = None
    weights: Sequence[float] = ()
    domain_column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "batch_tokens", "max_tokens", "sample_tokens", "generate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, at least 1 was expected")
        if self.device is not None and self.device_map is not None:
            raise UsageError("device and device_map both say where the model runs; leave one of them out")
        if self.offload_folder is not None and self.device_map is None:
            raise UsageError("offload_folder is for what device_map puts on the disk; give device_map with it")

    @property
    def num_generated(self) -> int:
        """How many tokens the model adds to each request, at most."""
        return self.generate or 0

    def length_for(self, config: "PreTrainedConfig") -> int:
        """The longest request; raises `UsageError` for more than the model can take, with what it is to generate."""
        most = getattr(config.get_text_config(), "max_position_embeddings", None) or MAX_LENGTH
        room = most - self.num_generated
        if room < 1:
            raise UsageError(f"generate is {self.generate}, and the model takes at most {most} tokens in all")
        if self.max_length is not None and self.max_length > room:
            generated = f", {self.generate} of them generated" if self.generate else ""
            raise UsageError(f"max_length is {self.max_length}, the model takes at most {most}{generated}")
        return self.max_length or min(MAX_LENGTH, room)

    def batch_tokens_for(self, device: torch.device) -> int:
        """Tokens of a forward pass, padding included."""
        return self.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
