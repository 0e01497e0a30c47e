"""Small synthetic checkpoints with published tensor names and random bytes; no model is needed to move bytes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import pytest

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.safetensors_header import DTYPE_BITS

Tensor = tuple[str, tuple[int, ...]]  # dtype and shape


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a checkpoint consists of: names relative to the block, `{e}` for each expert."""

    model_type: str
    prefix: str
    tensors: Mapping[str, Tensor]
    config: Mapping[str, object] = field(default_factory=dict)
    num_experts: int = 8
    layer_ids: tuple[int, ...] = (1, 2)
    num_layers: int = 3
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def names(self) -> dict[str, Tensor]:
        names = {"model.embed_tokens.weight": ("BF16", (16, 4)), "model.norm.weight": ("F32", (4,)), **self.extra}
        for layer in self.layer_ids:
            for name, tensor in self.tensors.items():
                for expert in range(self.num_experts if "{e}" in name else 1):
                    names[self.prefix.format(layer=layer) + name.format(e=expert)] = tensor
        return names


MIXTRAL = Recipe(
    model_type="mixtral",
    prefix="model.layers.{layer}.block_sparse_moe.",
    tensors={
        "gate.weight": ("BF16", (8, 4)),
        "experts.{e}.w1.weight": ("BF16", (6, 4)),
        "experts.{e}.w2.weight": ("BF16", (4, 6)),
        "experts.{e}.w3.weight": ("BF16", (6, 4)),
    },
    config={"num_experts_per_tok": 2},
)
DEEPSEEK = Recipe(
    model_type="deepseek_v3",
    prefix="model.layers.{layer}.mlp.",
    tensors={
        "gate.weight": ("BF16", (8, 4)),
        "gate.e_score_correction_bias": ("F32", (8,)),
        "shared_experts.up_proj.weight": ("BF16", (6, 4)),
        "experts.{e}.gate_proj.weight": ("BF16", (6, 4)),
        "experts.{e}.up_proj.weight": ("BF16", (6, 4)),
        "experts.{e}.down_proj.weight": ("BF16", (4, 6)),
    },
    config={"num_experts_per_tok": 2, "n_group": 4},
)
GPT_OSS = Recipe(
    model_type="gpt_oss",
    prefix="model.layers.{layer}.mlp.",
    tensors={
        "router.weight": ("BF16", (8, 4)),
        "router.bias": ("BF16", (8,)),
        "experts.gate_up_proj": ("BF16", (8, 4, 12)),
        "experts.gate_up_proj_bias": ("BF16", (8, 12)),
        "experts.down_proj": ("BF16", (8, 6, 4)),
        "experts.down_proj_bias": ("BF16", (8, 4)),
    },
    config={"num_experts_per_tok": 2},
)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], rng: np.random.Generator) -> None:
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rng.bytes(position))


def write_checkpoint(folder: Path, recipe: Recipe, num_shards: int = 2, seed: int = 0) -> Path:
    """A sharded checkpoint of random bytes whose tensors are dealt to the shards like cards."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    config = {"model_type": recipe.model_type, "num_hidden_layers": recipe.num_layers, **recipe.config}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    names = list(recipe.names().items())
    weight_map = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        dealt = dict(names[shard::num_shards])
        write_safetensors(folder / file, dealt, rng)
        weight_map |= dict.fromkeys(dealt, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """`make_checkpoint(folder, recipe, num_shards=2, seed=0)` writes a checkpoint and returns `folder`."""
    return write_checkpoint


@pytest.fixture(scope="session")
def recipes() -> dict[str, Recipe]:
    """Recipes by model type."""
    return {recipe.model_type: recipe for recipe in (MIXTRAL, DEEPSEEK, GPT_OSS)}


@pytest.fixture(scope="session")
def permutation_plan() -> Callable[..., PlacementPlan]:
    """`permutation_plan(rows, ep_size=..., layer_ids=...)`: a plan without replicas, new expert -> old expert."""
    return _permutation_plan


def _permutation_plan(
    rows: Sequence[Sequence[int]], *, ep_size: int, layer_ids: Sequence[int], top_k: int = 2
) -> PlacementPlan:
    experts = np.array(rows, dtype=np.int32)
    L, E = experts.shape
    slot_of = np.argsort(experts, axis=1).astype(np.int32)
    return PlacementPlan(
        topology=Topology.single_node(ep_size),
        num_logical_experts=E,
        top_k=top_k,
        attention="dp",
        replica_choice="static",
        layer_ids=np.array(layer_ids, dtype=np.int32),
        physical_to_logical=experts,
        rank_of_physical=np.repeat(np.arange(ep_size, dtype=np.int32), E // ep_size),
        dispatch_slot=np.broadcast_to(slot_of[:, None, :], (L, ep_size, E)).copy(),
        method="permutation",
    )


@pytest.fixture
def proven(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`proven(model_type, format, layout, what)`: a cell of docs/families.md, which is made of tests that passed."""

    def record(model_type: str, kind: str, layout: str, what: str) -> None:
        record_property("proven", json.dumps([model_type, kind, layout, what]))

    return record
