"""Tiny random models of several families, saved as ordinary checkpoints and compiled for four uneven ranks."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import specmoe
from specmoe.placement.plan import PlacementPlan

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {"intermediate_size": 40, "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}
# Configuration class, its arguments, and the decoder layers that are MoE layers.
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "mixtral": (
        "MixtralConfig",
        {"intermediate_size": 24, "num_local_experts": 8, "num_experts_per_tok": 2},
        (0, 1, 2),
    ),
    "olmoe": ("OlmoeConfig", {"intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}, (0, 1, 2)),
    "qwen2_moe": ("Qwen2MoeConfig", {**SMALL, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1]}, (0, 2)),
    "qwen3_moe": ("Qwen3MoeConfig", {**SMALL, "head_dim": 8}, (0, 1, 2)),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "intermediate_size": 40,
            "moe_intermediate_size": 24,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
        (1, 2),
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "intermediate_size": 24,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "sliding_window": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        (0, 1, 2),
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "intermediate_size": 24,
            "intermediate_size_mlp": 40,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "moe_layers": [0, 2],
            "attention_chunk_size": 16,
        },
        (0, 2),
    ),
    # Its router chooses among 8 experts and 4 that compute nothing.
    "longcat_flash": (
        "LongcatFlashConfig",
        {
            "num_hidden_layers": 4,  # two attentions in each of two layers
            "ffn_hidden_size": 40,
            "expert_ffn_hidden_size": 24,
            "n_routed_experts": 8,
            "zero_expert_num": 4,
            "moe_topk": 3,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "head_dim": 8,
            "num_key_value_heads": 4,
        },
        (0, 1),
    ),
}


@dataclass(frozen=True, kw_only=True)
class CompiledModel:
    """An unmodified checkpoint and what `reshard` made of it, by replica choice."""

    family: str
    source: Path
    compiled: dict[str, Path]
    plans: dict[str, PlacementPlan]


@pytest.fixture(scope="session")
def compiled_model(tmp_path_factory, random_plan) -> Callable[[str], CompiledModel]:
    """`compiled_model(family)`: made on first use; four ranks on two nodes, uneven slots, replicas."""
    made: dict[str, CompiledModel] = {}

    def get(family: str) -> CompiledModel:
        if family not in made:
            made[family] = _compile(family, tmp_path_factory.mktemp(family), random_plan)
        return made[family]

    return get


@pytest.fixture(scope="session")
def on_eight_ranks(compiled_model, random_plan, tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Checkpoints and what they were compiled to for eight ranks, three on one node and five on the other, that hold
    one to four of eight experts: replicas by either choice, tokens that all want the same experts ("hot"), and `tp`."""
    folder, made = tmp_path_factory.mktemp("eight"), {}
    hot = _with_equal_scores(compiled_model("mixtral").source, folder / "hot-source")
    deepseek = compiled_model("deepseek_v3").source
    for number, (name, source, choice, top_k, layer_ids) in enumerate(
        (
            ("static", deepseek, "static", 3, (1, 2)),
            ("cover", deepseek, "cover", 3, (1, 2)),
            ("hot", hot, "cover", 2, (0, 1, 2)),
            ("tp", deepseek, "cover", 3, (1, 2)),
        )
    ):
        plan = random_plan(
            np.random.default_rng(number),
            num_experts=8,
            ranks_per_node=(3, 5),
            top_k=top_k,
            extra_slots=(1, 0, 2, 0, 1, 0, 0, 3),
            replica_choice=choice,
            layer_ids=layer_ids,
        )
        made[name] = source, folder / name
        specmoe.reshard(source, with_token_table(plan) if name == "tp" else plan, folder / name)
    return made


def _with_equal_scores(source: Path, copy: Path) -> Path:
    """A copy of a checkpoint whose routers score all experts alike, so that every token goes to the same ones."""
    shutil.copytree(source, copy)
    weights = load_file(copy / "model.safetensors")
    weights |= {name: torch.zeros_like(w) for name, w in weights.items() if name.endswith("gate.weight")}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.fixture
def quiet_transformers():
    """No progress bars or notes from transformers on the output under test."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _compile(family: str, folder: Path, random_plan: Callable[..., PlacementPlan]) -> CompiledModel:
    model = tiny_model(family)
    layer_ids = FAMILIES[family][2]
    model.save_pretrained(folder / "source")
    plans = {
        choice: random_plan(
            np.random.default_rng(seed),
            num_experts=8,
            ranks_per_node=(2, 2),
            top_k=model.config.num_experts_per_tok,
            extra_slots=(1, 0, 2, 1),
            replica_choice=choice,
            layer_ids=layer_ids,
        )
        for seed, choice in enumerate(("static", "cover"))
    }
    plans["tp"] = with_token_table(plans["cover"])
    # Told of a slow link between the nodes: rows cross it by way of relays.
    topology = replace(plans["cover"].topology, intra_node_gb_per_s=4.0, inter_node_gb_per_s=1.0)
    plans["relays"] = replace(plans["cover"], topology=topology)
    plans["tp_relays"] = replace(plans["tp"], topology=topology)
    compiled = {choice: folder / choice for choice in plans}
    for choice, plan in plans.items():
        specmoe.reshard(folder / "source", plan, compiled[choice])
    return CompiledModel(family=family, source=folder / "source", compiled=compiled, plans=plans)


def with_token_table(plan: PlacementPlan) -> PlacementPlan:
    """The same placement for `tp` attention; the table knows two tokens in three, with few different confidences."""
    rng = np.random.default_rng(5)
    shape = (plan.num_layers, SHAPE["vocab_size"])
    ranks = rng.integers(0, plan.ep_size, shape)
    ranks[rng.random(shape) < 1 / 3] = -1
    confidence = rng.integers(0, 4, shape) / 4
    return replace(
        plan,
        attention="tp",
        token_to_rank=ranks.astype(np.int16),
        token_confidence=confidence.astype(np.float16),
    )


def tiny_model(family: str) -> Any:
    """A random model whose routers and logits are far from ties."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    config_class, arguments, _ = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**SHAPE, **arguments})
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
        for name, buffer in model.named_buffers():
            if "correction" in name:
                buffer.normal_(std=0.1)
    return model.eval()
