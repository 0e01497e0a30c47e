"""What a model's configuration says of its routing, wherever its family writes it: experts, top k, groups, layers."""

from collections.abc import Mapping, Sequence
from typing import Any

from specmoe.errors import CheckpointError

# Families name the same number differently; the first that is there counts.
NUM_EXPERTS_KEYS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "top_k_experts")
GROUP_KEYS = ("n_group", "num_expert_group")

# How many expert groups a configuration means that does not say, where that is not 1.
_DEFAULT_GROUPS = dict.fromkeys(("axk1", "bailing_hybrid", "beam", "deepseek_v3", "deepseek_v32"), 8)
# Where a multimodal configuration keeps its language model's.
_NESTED_KEYS = ("thinker_config", "llm_config", "text_config")


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of `config` that describes the language model: `text_config` in a multimodal one, else all of it."""
    while nested := [config[key] for key in _NESTED_KEYS if isinstance(config.get(key), dict)]:
        config = nested[0]
    return config


def stated_model_types(config: Mapping[str, Any]) -> list[str]:
    """The `model_type` of the whole model and that of its language model, where stated."""
    stated = (part.get("model_type") for part in (config, language_config(config)))
    return [name for name in stated if isinstance(name, str)]


def num_experts(config: Mapping[str, Any]) -> int | None:
    """E as the configuration states it, or None where it does not."""
    return _number(config, NUM_EXPERTS_KEYS)


def experts_per_token(config: Mapping[str, Any]) -> int | None:
    """K as the configuration states it (the first layer's, where it states a list), or None where it does not."""
    return _number(config, TOP_K_KEYS)


def num_decoder_layers(config: Mapping[str, Any], where: str) -> int | None:
    """How many decoder layers the configuration states, None where it does not.

    A layer past the last is a head for speculative decoding.
    """
    value = language_config(config).get("num_hidden_layers")
    if value is not None and (type(value) is not int or value < 1):
        raise CheckpointError(f"{where} states num_hidden_layers as {value!r}, a number of at least 1 was expected")
    return value


def num_expert_groups(config: Mapping[str, Any], where: str) -> int:
    """G of group-limited routing: experts `g * E / G` up to `(g + 1) * E / G` are group g; 1 = no such limit."""
    language = language_config(config)
    # Of all families that have groups, DeepSeek-V2 alone can switch them off; the others do not read this.
    if language.get("model_type") == "deepseek_v2" and language.get("topk_method") == "greedy":
        return 1
    value = _first(language, GROUP_KEYS)
    if value is None:
        value = _DEFAULT_GROUPS.get(str(language.get("model_type")), 1)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{where} states its expert groups as {value!r}, a number of at least 1 was expected")
    return value


def _number(config: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    value = _first(language_config(config), keys)
    if isinstance(value, list) and value:
        value = value[0]
    return value if type(value) is int else None


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
