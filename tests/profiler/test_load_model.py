"""Models whose published names or classes are not those of a plain causal model."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import specmoe
from specmoe.errors import CheckpointError

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
}
VISION = {
    "hidden_size": 16,
    "depth": 1,
    "num_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "out_hidden_size": 32,
}


def deepseek_v4() -> Any:
    """Published without the `model.` before its names."""
    from transformers import DeepseekV4Config

    latent = {"qk_rope_head_dim": 8, "q_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2, "sliding_window": 8}
    index = {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 4}
    return DeepseekV4Config(**TEXT, **latent, **index, n_routed_experts=8, mlp_layer_types=["moe", "moe"])


def qwen3_vl_moe() -> Any:
    """A language model inside one that also sees."""
    from transformers import Qwen3VLMoeConfig

    text = TEXT | {"num_experts": 8, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]}}
    return Qwen3VLMoeConfig(text_config=text, vision_config=VISION | {"deepstack_visual_indexes": [0]})


@pytest.fixture
def saved(tmp_path, write_tokenizer):
    """`saved(config, kind)`: a random model of transformers' automatic class `kind`."""

    def save(config: Any, kind: str) -> Path:
        import transformers

        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = getattr(transformers, kind).from_config(config)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "norm" not in name:
                        parameter.normal_(std=0.2)
            model.save_pretrained(tmp_path / "model")
        write_tokenizer(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.mark.parametrize(
    ("config", "kind"),
    [(deepseek_v4, "AutoModelForCausalLM"), (qwen3_vl_moe, "AutoModelForImageTextToText")],
    ids=["deepseek_v4", "qwen3_vl_moe"],
)
def test_such_a_model_is_profiled_with_and_without_generation(config, kind, saved, jsonl) -> None:
    folder = saved(config(), kind)
    plain = specmoe.profile(folder, jsonl, max_length=20, max_tokens=200)
    generated = specmoe.profile(folder, jsonl, max_length=20, max_tokens=200, generate=3)
    assert plain.layer_ids.tolist() == generated.layer_ids.tolist() == [0, 1]
    assert generated.decode is not None
    assert generated.decode.num_tokens > 20
    prefill = generated.expert_counts - generated.decode.expert_counts
    np.testing.assert_array_equal(prefill, plain.expert_counts)


def test_a_model_that_cannot_generate_says_so(editable_model, jsonl, monkeypatch) -> None:
    from specmoe.profiler import load_model

    monkeypatch.setattr(load_model, "_generating_kind", lambda config: None)
    with pytest.raises(CheckpointError, match=r"no model for .* that generates text; profile it without generate"):
        specmoe.profile(editable_model, jsonl, generate=3)


def test_what_goes_wrong_inside_generate_is_one_sentence(tiny_model, jsonl, monkeypatch) -> None:
    from transformers import GenerationMixin

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("this cache has no length\nand more")

    monkeypatch.setattr(GenerationMixin, "generate", fail)
    with pytest.raises(CheckpointError, match=r"cannot generate with this OlmoeForCausalLM: this cache has no length$"):
        specmoe.profile(tiny_model("olmoe").folder, jsonl, generate=3)
