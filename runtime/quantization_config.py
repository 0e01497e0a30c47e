"""Find what a model's configuration says of its quantization, in whichever part, and take it out of a loaded one.

Multimodal checkpoints state it beside their parts or inside one: Kimi-K2.5's is in `text_config`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from specmoe.errors import CheckpointError

_KEY = "quantization_config"


def stated_quantization(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The one `quantization_config` in `config` or its parts, empty where there is none.

    Raises `CheckpointError` for one that is no object, and for several that differ: which weights each is for, they
    do not say.
    """
    stated = [part[_KEY] for part in _parts(config) if part.get(_KEY) is not None]
    for value in stated:
        if not isinstance(value, dict):
            raise CheckpointError(f"{where} has the {_KEY} {value!r}, a JSON object was expected")
        if value != stated[0]:
            raise CheckpointError(f"{where} has several parts with a {_KEY} of their own; one for all was expected")
    return stated[0] if stated else {}


def forget_quantization(config: Any) -> None:
    """Take the statement out of a transformers configuration and its parts, in place."""
    vars(config).pop(_KEY, None)
    for name in config.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            forget_quantization(part)


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for key, value in config.items():
        if key != _KEY and isinstance(value, dict):
            yield from _parts(value)
