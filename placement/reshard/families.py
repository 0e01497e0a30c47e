"""The families that can be compiled: which tensors of a decoder layer belong to routed experts and their routers.

A family is a row of data. Everything in a layer's MoE block that the row does not name makes the checkpoint refused:
a forgotten correction bias would load without an error and give wrong output. Names are those of published
checkpoints; where a row was checked by running a model, the tests say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specmoe.errors import CheckpointError

# What may stand before "layers.N." in the name of a decoder layer's tensor. Other towers, and extra heads for
# speculative decoding such as "mtp.layers.0.", are not decoder layers: their tensors are carried along unchanged.
DECODER_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "backbone.")

_GATED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_GATED_BY_NUMBER = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
_FUSED = {"experts.gate_up_proj": "gate_up_proj", "experts.down_proj": "down_proj"}
_SHARED = ("shared_expert.", "shared_experts.", "shared_expert_gate.", "shared_mlp.")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One way to lay out MoE blocks; names are relative to the block, `{decoder prefix}layers.{N}.{block}.`.

    routers: tensors with one entry per expert along the given axis; the first is the router weight [E, H], whose
    presence makes a layer a MoE layer. parameters: each parameter of transformers' experts module and the per-expert
    projections `experts.{e}.{projection}.weight` whose rows it concatenates. fused: source tensors [E, …] that
    already hold all experts, and the parameter that each is; suffixes such as "_bias" or "_scales" follow both names.
    unrouted: prefixes of what every token uses. memory_block: the block's name in transformers' module tree;
    memory_prefixes: decoder prefixes that are others there.
    """

    name: str
    model_types: tuple[str, ...]
    block: str
    memory_block: str
    routers: Mapping[str, int]
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fused: Mapping[str, str] = field(default_factory=dict)
    unrouted: tuple[str, ...] = _SHARED
    memory_prefixes: Mapping[str, str] = field(default_factory=dict)

    @property
    def router_weight(self) -> str:
        return next(iter(self.routers))


FAMILIES = (
    Family(
        name="mixtral",
        model_types=("mixtral", "phimoe", "minimax", "minimax_m2", "kimi_linear"),
        block="block_sparse_moe",
        memory_block="mlp",
        routers={"gate.weight": 0, "e_score_correction_bias": 0, "gate.e_score_correction_bias": 0},
        parameters=_GATED_BY_NUMBER,
    ),
    Family(
        name="qwen",
        model_types=(
            *("qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "flex_olmo", "mellum", "cohere2_moe"),
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25"),
            *("glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "dots1", "solar_open", "exaone_moe", "mimo_v2_flash"),
            *("ernie4_5_moe", "bailing_hybrid", "laguna"),
        ),
        block="mlp",
        memory_block="mlp",
        routers={
            "gate.weight": 0,
            "gate.e_score_correction_bias": 0,
            "gate.expert_bias": 0,
            "e_score_correction_bias": 0,
            "experts.e_score_correction_bias": 0,
            "moe_statics.e_score_correction_bias": 1,
        },
        parameters=_GATED,
    ),
    Family(
        name="qwen-fused",
        model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
        block="mlp",
        memory_block="mlp",
        routers={"gate.weight": 0},
        parameters=_GATED,
        fused=_FUSED,
    ),
    Family(
        name="hunyuan",
        model_types=("hunyuan_v1_moe",),
        block="mlp",
        memory_block="mlp",
        routers={"gate.wg.weight": 0},
        parameters=_GATED,
    ),
    Family(
        name="afmoe",
        model_types=("afmoe", "hy_v3"),
        block="mlp",
        memory_block="mlp",
        routers={"router.gate.weight": 0, "expert_bias": 0},
        parameters=_GATED,
    ),
    Family(
        name="gpt-oss",
        model_types=("gpt_oss",),
        block="mlp",
        memory_block="mlp",
        routers={"router.weight": 0, "router.bias": 0},
        fused=_FUSED,
    ),
    Family(
        name="llama4",
        model_types=("llama4", "llama4_text"),
        block="feed_forward",
        memory_block="feed_forward",
        routers={"router.weight": 0},
        parameters=_GATED,
        fused=_FUSED,
    ),
    Family(
        name="jamba",
        model_types=("jamba",),
        block="feed_forward",
        memory_block="feed_forward",
        routers={"router.weight": 0},
        parameters=_GATED,
    ),
    Family(
        name="lfm2",
        model_types=("lfm2_moe",),
        block="feed_forward",
        memory_block="feed_forward",
        routers={"gate.weight": 0, "expert_bias": 0},
        parameters=_GATED_BY_NUMBER,
    ),
    Family(
        name="granite",
        model_types=("granitemoe", "granitemoeshared", "granitemoehybrid"),
        block="block_sparse_moe",
        memory_block="block_sparse_moe",
        routers={"router.layer.weight": 0},
        fused={"input_linear.weight": "gate_up_proj", "output_linear.weight": "down_proj"},
    ),
    Family(
        name="nemotron-h",
        model_types=("nemotron_h",),
        block="mixer",
        memory_block="mixer",
        routers={"gate.weight": 0, "gate.e_score_correction_bias": 0},
        parameters={"up_proj": ("up_proj",), "down_proj": ("down_proj",)},
        unrouted=(*_SHARED, "fc1_latent_proj.", "fc2_latent_proj."),
        memory_prefixes={"backbone.": "model."},
    ),
)

_TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
_GROUP_KEYS = ("n_group", "num_expert_group")
_SHOWN_PATTERNS = 6

# How many expert groups a configuration means that does not say, where that is not 1.
_DEFAULT_GROUPS = {"deepseek_v3": 8, "bailing_hybrid": 8}


def find_family(config: Mapping[str, Any], where: str, patterns: Sequence[str]) -> Family:
    """The family of a model's `config`; raises `CheckpointError` for one not in the table.

    The message names the model type and the `patterns` of the tensors' names, which tell whether a row could be added.
    """
    stated = [part.get("model_type") for part in (config, language_config(config))]
    found = [name for name in stated if isinstance(name, str)]
    for family in FAMILIES:
        if set(found) & set(family.model_types):
            return family
    if not found:
        raise CheckpointError(
            f"{where} has a config.json without a model_type, so its tensors' names cannot be understood"
        )
    shown = ", ".join(patterns[:_SHOWN_PATTERNS]) + (", …" if len(patterns) > _SHOWN_PATTERNS else "")
    raise CheckpointError(
        f"{where} has the model type {found[0]!r}, which is not a known family (docs/families.md lists those); "
        f"its mixture-of-experts tensors are named {shown}"
    )


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of `config` that describes the language model: `text_config` in a multimodal one, else all of it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def num_decoder_layers(config: Mapping[str, Any], where: str) -> int | None:
    """How many decoder layers the configuration states, None where it does not.

    A layer past the last is a head for speculative decoding.
    """
    value = language_config(config).get("num_hidden_layers")
    if value is not None and (type(value) is not int or value < 1):
        raise CheckpointError(f"{where} states num_hidden_layers as {value!r}, a number of at least 1 was expected")
    return value


def experts_per_token(config: Mapping[str, Any]) -> int | None:
    """K as the configuration states it (the first layer's, where it states a list), or None where it does not."""
    value = _first(language_config(config), _TOP_K_KEYS)
    if isinstance(value, list) and value:
        value = value[0]
    return value if type(value) is int else None


def num_expert_groups(config: Mapping[str, Any], where: str) -> int:
    """G of group-limited routing: experts `g * E / G` up to `(g + 1) * E / G` are group g; 1 = no such limit."""
    language = language_config(config)
    # Of all families that have groups, DeepSeek-V2 alone can switch them off; the others do not read this.
    if language.get("model_type") == "deepseek_v2" and language.get("topk_method") == "greedy":
        return 1
    value = _first(language, _GROUP_KEYS)
    if value is None:
        value = _DEFAULT_GROUPS.get(str(language.get("model_type")), 1)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{where} states its expert groups as {value!r}, a number of at least 1 was expected")
    return value


def _first(config: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
