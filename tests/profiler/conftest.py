"""Tiny random models of several families with a byte-level tokenizer, and text to run them on."""

import json
import random
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
SMALL = {"intermediate_size": 40, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3}
# Configuration class, its arguments, and the decoder layers that have experts.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[int]]] = {
    "mixtral": (
        "MixtralConfig",
        {"intermediate_size": 16, "num_local_experts": 8, "num_experts_per_tok": 2},
        [0, 1, 2],
    ),
    "olmoe": ("OlmoeConfig", {"intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3}, [0, 1, 2]),
    "qwen2_moe": ("Qwen2MoeConfig", {**SMALL, "shared_expert_intermediate_size": 16, "mlp_only_layers": [1]}, [0, 2]),
    "qwen3_moe": ("Qwen3MoeConfig", {**SMALL, "head_dim": 8}, [0, 1, 2]),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            "intermediate_size": 40,
            "moe_intermediate_size": 16,
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
        [1, 2],
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "intermediate_size": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        [0, 1, 2],
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "intermediate_size": 16,
            "intermediate_size_mlp": 40,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "moe_layers": [0, 2],
            "attention_chunk_size": 16,
        },
        [0, 2],
    ),
    # None of its experts computes nothing.
    "longcat_flash": (
        "LongcatFlashConfig",
        {
            "num_hidden_layers": 4,  # two attentions in each of two layers
            "ffn_hidden_size": 40,
            "expert_ffn_hidden_size": 16,
            "n_routed_experts": 8,
            "zero_expert_num": 0,
            "moe_topk": 3,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "head_dim": 8,
            "num_key_value_heads": 4,
        },
        [0, 1],
    ),
}


def save_model(folder: Path, config_class: str, arguments: dict[str, Any]) -> Path:
    """Save a random model of the family, with weights large enough that experts differ in use."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**SHAPE | arguments))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, *, bos: bool = False, chat_template: str | None = None) -> None:
    """A tokenizer with a token per byte; `bos` puts <s> before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(["<s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint folder and the decoder layers that have experts."""

    folder: Path
    layer_ids: list[int]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Callable[[str], TinyModel]:
    """`tiny_model("mixtral")`: a tiny model of that family."""
    made: dict[str, TinyModel] = {}

    def make(family: str) -> TinyModel:
        if family not in made:
            config_class, arguments, layer_ids = FAMILIES[family]
            folder = save_model(tmp_path_factory.mktemp("models") / family, config_class, arguments)
            made[family] = TinyModel(folder, layer_ids)
        return made[family]

    return make


@pytest.fixture
def model_of_many_experts(tmp_path) -> Path:
    """A tiny Mixtral of 300 experts, whose ids take more than a byte."""
    arguments = {"intermediate_size": 16, "num_local_experts": 300, "num_experts_per_tok": 2, "num_hidden_layers": 1}
    return save_model(tmp_path / "many", "MixtralConfig", arguments)


@pytest.fixture
def editable_model(tiny_model, tmp_path) -> Path:
    """A copy of the tiny OLMoE that a test may damage."""
    return Path(shutil.copytree(tiny_model("olmoe").folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[..., None]:
    """`write_tokenizer(folder, bos=..., chat_template=...)`."""
    return save_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Texts of odd lengths, some longer than the tiny models' 64 tokens, with letters outside ASCII."""
    rng = random.Random(0)
    lengths = [1, 7, 16, 17, 33, 64, 65, 150, 5, 40, 128, 3]
    return ["".join(rng.choice("abcdefgh ijkl\nmnoé.") for _ in range(length)) for length in lengths]


@pytest.fixture
def jsonl(tmp_path, texts) -> Path:
    """`texts` as a jsonl file."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def routes_by_the_router() -> Callable[[Path, list[list[int]]], list[np.ndarray]]:
    """`routes_by_the_router(folder, sequences)`: what the model's own routers choose."""
    return _routes_by_the_router


def _routes_by_the_router(folder: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    """Per MoE layer int [T, K]: what the router modules of the causal model return, one sequence at a time."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for path, module in model.named_modules():
        if path.endswith(("mlp.gate", "mlp.router", "feed_forward.router")):
            seen[path] = []
            block = model.get_submodule(path.rpartition(".")[0])

            def keep(_module: Any, _args: Any, output: Any, path: str = path, block: Any = block) -> None:
                if path.endswith("feed_forward.router"):
                    # Llama-4's scores are 0 for all but the chosen.
                    seen[path].append(output[0].nonzero()[:, 1].reshape(len(output[0]), -1))
                    return
                # Older releases of some families return logits alone, and their block chooses.
                seen[path].append(output[2] if isinstance(output, tuple) else block.route_tokens_to_experts(output)[0])

            module.register_forward_hook(keep)
    with torch.inference_mode():
        for sequence in sequences:
            model(input_ids=torch.tensor([sequence]), use_cache=False)
    return [torch.cat(indices).numpy() for indices in seen.values()]
