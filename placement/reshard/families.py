"""The families that can be compiled: which tensors of a decoder layer belong to routed experts and their routers.

A family is a row of data. Everything in a layer's MoE block that the row does not name makes the checkpoint refused:
a forgotten correction bias would load without an error and give wrong output. Names are those of published
checkpoints; where a row was checked by running a model, the tests say so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from specmoe.errors import CheckpointError
from specmoe.placement.reshard.family import SHARED, Family
from specmoe.placement.reshard.refused_families import REFUSED
from specmoe.routing_config import stated_model_types

# What may stand before "layers.N." in the name of a decoder layer's tensor. Other towers, and extra heads for
# speculative decoding such as "mtp.layers.0.", are not decoder layers: their tensors are carried along unchanged.
DECODER_PREFIXES = (
    *("", "model.", "language_model.model.", "model.language_model.", "thinker.model."),
    *("backbone.", "language_model.backbone."),
)

_GATED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_GATED_BY_NUMBER = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}
_FUSED = {"experts.gate_up_proj": "gate_up_proj", "experts.down_proj": "down_proj"}
_ZAYA_ROUTER_NETWORK = ("gate.router_mlp.norm.", "gate.router_mlp.fc1.", "gate.router_mlp.fc2.")
_GEMMA_BESIDE_EXPERTS = ("input_layernorm.", "post_", "pre_feedforward_", "per_layer_", "layer_scalar")
_GATE = {
    "gate.weight": 0,
    "gate.e_score_correction_bias": 0,
    "gate.expert_bias": 0,
    "e_score_correction_bias": 0,
    "experts.e_score_correction_bias": 0,
    "moe_statics.e_score_correction_bias": 1,
}

FAMILIES = (
    Family(
        name="mixtral",
        model_types=("mixtral", "phimoe", "minimax", "minimax_m2", "minimax_m3_vl", "kimi_linear"),
        block="block_sparse_moe",
        memory_block="mlp",
        routers={"gate.weight": 0, "e_score_correction_bias": 0, "gate.e_score_correction_bias": 0},
        parameters=_GATED_BY_NUMBER,
    ),
    Family(
        name="qwen",
        model_types=(
            *("qwen2_moe", "qwen3_moe", "qwen3_next", "olmoe", "flex_olmo", "mellum", "cohere2_moe", "flint", "beam"),
            *("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "axk1", "axk2"),
            *("glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "glm5_next"),
            *("dots1", "solar_open", "exaone_moe", "mimo_v2_flash", "ernie4_5_moe", "bailing_hybrid", "laguna"),
            *("qwen4_exp", "qwen4_exp_text"),
        ),
        block="mlp",
        memory_block="mlp",
        routers=_GATE,
        parameters=_GATED,
    ),
    Family(
        name="qwen-beside-vision",
        model_types=("qwen3_omni_moe", "qwen3_omni_moe_thinker", "dots3_note", "deepseek_ocr2", "unlimited_ocr"),
        block="mlp",
        memory_block="mlp",
        routers=_GATE,
        parameters=_GATED,
        memory_prefixes={"model.": "model.language_model.", "thinker.model.": "thinker.model.language_model."},
    ),
    Family(
        name="qwen-fused",
        model_types=("qwen3_5_moe", "qwen3_5_moe_text", "mistral4", "hy_v4"),
        block="mlp",
        memory_block="mlp",
        routers=_GATE,
        parameters=_GATED,
        fused=_FUSED,
    ),
    Family(
        name="qwen-vl",
        model_types=("qwen3_vl_moe",),
        block="mlp",
        memory_block="mlp",
        routers={"gate.weight": 0},
        parameters=_GATED,
        fused=_FUSED,
        hidden_axes={"gate_up_proj": 1, "down_proj": 0},
    ),
    Family(
        name="muse-spark",
        model_types=("muse_spark",),
        block="mlp",
        memory_block="mlp",
        routers=_GATE,
        fused=_FUSED,
        unrouted=("pre_expert_", "post_expert_", "experts.post_expert_norm."),
    ),
    Family(
        name="kolibri",
        model_types=("kolibri1",),
        block="",
        memory_block="mlp",
        routers={"mlp.gate.weight": 0, "moe.router.expert_bias": 0},
        experts="mlp.experts",
        parameters=_GATED,
        unrouted=(
            "mlp.shared_experts.",
            "input_layernorm.",
            "self_attn.",
            "post_attention_",
            "post_attn_",
            "post_ffn_",
        ),
    ),
    Family(
        name="longcat",
        model_types=("longcat_flash",),
        block="mlp",
        memory_block="mlp",
        routers={"router.classifier.weight": 0, "router.classifier.bias": 0, "router.e_score_correction_bias": 0},
        scores_more_than_experts=True,
        parameters=_GATED,
    ),
    Family(
        name="zaya",
        model_types=("zaya",),
        block="mlp",
        memory_block="mlp",
        routers={"gate.router_mlp.out_proj.weight": 0, "gate.balancing_biases": 0},
        scores_more_than_experts=True,
        fused=_FUSED,
        unrouted=("gate.down_proj.", "gate.router_states_scale", *_ZAYA_ROUTER_NETWORK),
    ),
    Family(
        name="deepseek-v4",
        model_types=("deepseek_v4",),
        block="ffn",
        memory_block="mlp",
        routers={"gate.weight": 0, "gate.bias": 0},
        expert_numbers=("gate.tid2eid",),
        parameters=_GATED_BY_NUMBER,
        memory_prefixes={"": "model."},
    ),
    Family(
        name="mistral-large-4",
        model_types=("mistral_large4",),
        block="",
        memory_block="mlp",
        routers={"gate.weight": 0},
        parameters=_GATED_BY_NUMBER,
        unrouted=("shared_experts.", "attention.", "attention_norm.", "ffn_norm."),
        memory_prefixes={"": "model.language_model."},
    ),
    Family(
        name="gemma4",
        model_types=("gemma4", "gemma4_text"),
        block="",
        memory_block="",
        routers={"router.proj.weight": 0, "router.per_expert_scale": 0},
        fused=_FUSED,
        unrouted=("router.scale", "mlp.", "self_attn.", *_GEMMA_BESIDE_EXPERTS),
    ),
    Family(
        name="step3",
        model_types=("step3p7",),
        block="moe",
        memory_block="mlp",
        routers={"gate.weight": 0, "router_bias": 0},
        parameters=_GATED,
        fused={f"{name}.weight": f"{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")},
        memory_prefixes={"model.": "model.language_model."},
    ),
    Family(
        name="aria",
        model_types=("aria", "aria_text"),
        block="mlp",
        memory_block="mlp",
        routers={"router.weight": 0},
        fused={"experts.fc1.weight": "gate_up_proj", "experts.fc2.weight": "down_proj"},
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
        memory_prefixes={},
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
        name="granite-swa",
        model_types=("granitemoe_swa",),
        block="block_sparse_moe",
        memory_block="block_sparse_moe",
        routers={"router.weight": 0},
        fused=_FUSED,
    ),
    Family(
        name="nemotron-h",
        model_types=("nemotron_h", "nemotron_h_omni"),
        block="mixer",
        memory_block="mixer",
        routers={"gate.weight": 0, "gate.e_score_correction_bias": 0},
        parameters={"up_proj": ("up_proj",), "down_proj": ("down_proj",)},
        unrouted=(*SHARED, "fc1_latent_proj.", "fc2_latent_proj."),
        memory_prefixes={"backbone.": "model.", "language_model.backbone.": "language_model.model."},
    ),
)

_SHOWN_PATTERNS = 6


def find_family(config: Mapping[str, Any], where: str, patterns: Sequence[str]) -> Family:
    """The family of a model's `config`; raises `CheckpointError` for one not in the table.

    A multimodal type without a row of its own is read as its language model. The message names the model type, and why
    it is refused or the `patterns` of the tensors' names, which tell whether a row could be added.
    """
    found = stated_model_types(config)
    for name in found:
        if name in REFUSED:
            raise CheckpointError(f"{where} has the model type {name!r}, which is not compiled: {REFUSED[name]}")
        for family in FAMILIES:
            if name in family.model_types:
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
