"""What an engine's record leaves out about its model: sizes from the checkpoint's config, or as the user gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specmoe.checkpoint import CONFIG_FILE, open_checkpoint
from specmoe.errors import UsageError
from specmoe.model_folder import model_folder
from specmoe.routing_config import experts_per_token, language_config, num_experts


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """num_layers counts all decoder layers, dense ones too; None where a number is not known."""

    num_experts: int | None = None
    num_layers: int | None = None
    top_k: int | None = None
    vocab_size: int | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_layers", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, at least 1 was expected")

    @classmethod
    def gather(
        cls,
        model: str | Path | None = None,
        *,
        num_experts: int | None = None,
        num_layers: int | None = None,
        top_k: int | None = None,
    ) -> "ModelFacts":
        """The numbers as given, else from `model`, a checkpoint folder or a name on the Hugging Face hub; raises
        `UsageError` where the two differ.
        """
        given: dict[str, int | None] = {"num_experts": num_experts, "num_layers": num_layers, "top_k": top_k}
        if model is None:
            return cls(num_experts=num_experts, num_layers=num_layers, top_k=top_k)
        folder = model_folder(model)
        checkpoint = open_checkpoint(folder)
        found = _from_config(checkpoint.config)
        for name, value in given.items():
            if value is not None and found[name] is not None and value != found[name]:
                raise UsageError(
                    f"{name} is {value}, and {folder / CONFIG_FILE} says {found[name]}; leave one of them out"
                )
            found[name] = found[name] if value is None else value
        return cls(
            num_experts=found["num_experts"],
            num_layers=found["num_layers"],
            top_k=found["top_k"],
            vocab_size=found["vocab_size"],
            fingerprint=checkpoint.fingerprint,
        )

    def require(self, name: str, purpose: str) -> int:
        """The number `name`; raises `UsageError` saying how to give it where it is not known."""
        value: int | None = getattr(self, name)
        if value is None:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{purpose} does not say the model's {name}; give {option} N, or --model MODEL")
        return value


def _from_config(config: Mapping[str, Any]) -> dict[str, int | None]:
    language = language_config(config)
    return {
        "num_experts": num_experts(config),
        "num_layers": _integer(language.get("num_hidden_layers")),
        "top_k": experts_per_token(config),
        "vocab_size": _integer(language.get("vocab_size", config.get("vocab_size"))),
    }


def _integer(value: Any) -> int | None:
    return value if type(value) is int else None
