"""A random Qwen3-MoE of a wanted size, saved as such models are published: one tensor per expert and projection."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from specmoe.placement.plan import Attention, PlacementPlan
from specmoe.placement.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The model's sizes; `num_layers` decides its bytes."""

    num_layers: int
    hidden_size: int = 1024
    expert_width: int = 512
    num_experts: int = 64
    top_k: int = 8
    num_heads: int = 16
    head_dim: int = 64
    num_key_value_heads: int = 4
    vocab_size: int = 32_768

    @classmethod
    def of_bytes(cls, num_bytes: float) -> "Shape":
        """About so many bytes in bfloat16."""
        one = cls(num_layers=1)
        of_layer = 2 * 3 * one.num_experts * one.hidden_size * one.expert_width
        return cls(num_layers=max(1, round(num_bytes / of_layer)))


def write_checkpoint(folder: Path, shape: Shape) -> None:
    """A shard per layer and one for the rest, bfloat16."""
    from transformers import Qwen3MoeConfig

    folder.mkdir(parents=True)
    # The type that transformers declares for it leaves `head_dim` out.
    config: Any = Qwen3MoeConfig(  # type: ignore[call-arg]
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        moe_intermediate_size=shape.expert_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        architectures=["Qwen3MoeForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shards = [dict(_layer(shape, layer)) for layer in range(shape.num_layers)] + [dict(_rest(shape))]
    weight_map: dict[str, str] = {}
    for number, sizes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {tensor: _values(size, generator) for tensor, size in sizes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "shape.json").write_text(json.dumps(asdict(shape)))


def random_plan(shape: Shape, ep_size: int, attention: Attention) -> PlacementPlan:
    """Experts in a random order on `ep_size` ranks; under `tp` with a token table that knows nothing."""
    rng = np.random.default_rng(0)
    experts = np.stack([rng.permutation(shape.num_experts) for _ in range(shape.num_layers)]).astype(np.int32)
    slot_of = np.argsort(experts, axis=1).astype(np.int32)
    table = (shape.num_layers, shape.vocab_size)
    is_tp = attention == "tp"
    return PlacementPlan(
        topology=Topology.single_node(ep_size),
        num_logical_experts=shape.num_experts,
        top_k=shape.top_k,
        attention=attention,
        replica_choice="static",
        layer_ids=np.arange(shape.num_layers, dtype=np.int32),
        physical_to_logical=experts,
        rank_of_physical=np.repeat(np.arange(ep_size, dtype=np.int32), shape.num_experts // ep_size),
        dispatch_slot=np.broadcast_to(slot_of[:, None, :], (shape.num_layers, ep_size, shape.num_experts)).copy(),
        token_to_rank=np.full(table, -1, np.int16) if is_tp else None,
        token_confidence=np.zeros(table, np.float16) if is_tp else None,
        method="random",
    )


def _layer(shape: Shape, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix, hidden = f"model.layers.{layer}.", shape.hidden_size
    wide, narrow = shape.num_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    yield f"{prefix}self_attn.q_proj.weight", (wide, hidden)
    yield f"{prefix}self_attn.k_proj.weight", (narrow, hidden)
    yield f"{prefix}self_attn.v_proj.weight", (narrow, hidden)
    yield f"{prefix}self_attn.o_proj.weight", (hidden, wide)
    for norm, size in (("self_attn.q_norm", shape.head_dim), ("self_attn.k_norm", shape.head_dim)):
        yield f"{prefix}{norm}.weight", (size,)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{prefix}{norm}.weight", (hidden,)
    yield f"{prefix}mlp.gate.weight", (shape.num_experts, hidden)
    for expert in range(shape.num_experts):
        for projection in ("gate_proj", "up_proj"):
            yield f"{prefix}mlp.experts.{expert}.{projection}.weight", (shape.expert_width, hidden)
        yield f"{prefix}mlp.experts.{expert}.down_proj.weight", (hidden, shape.expert_width)


def _rest(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (shape.vocab_size, shape.hidden_size)
    yield "model.norm.weight", (shape.hidden_size,)
    yield "lm_head.weight", (shape.vocab_size, shape.hidden_size)


def _values(size: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.randn(size, generator=generator).mul_(size[1] ** -0.5).to(torch.bfloat16)
