"""Make the demo's model: a stock transformers class with fresh weights."""

from typing import Any

import torch
from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from demo.settings import ModelShape

LONGEST_TEXT_TOKENS = 2048


def new_model(shape: ModelShape, end_of_text: int, seed: int) -> Qwen3MoeForCausalLM:
    """A float32 model of `shape` with random weights that depend on `seed` alone."""
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(_config(shape, end_of_text))
    # transformers' class has no annotations.
    generation_config: type[Any] = GenerationConfig
    model.generation_config = generation_config(eos_token_id=end_of_text, pad_token_id=end_of_text)
    return model


def _config(shape: ModelShape, end_of_text: int) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        moe_intermediate_size=shape.expert_width,
        intermediate_size=shape.expert_width * shape.top_k,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        tie_word_embeddings=True,
        max_position_embeddings=LONGEST_TEXT_TOKENS,
        eos_token_id=end_of_text,
    )
