"""A synthetic sharded checkpoint of FP8 experts with their scales, and a random plan for it.

Its experts are smaller than published ones, so that a few GiB have tens of thousands of tensors.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology

NUM_EXPERTS, EP_SIZE, TOP_K = 256, 8, 8
HIDDEN, INTERMEDIATE, BLOCK = 2048, 256, 128
SHARD_BYTES = 2**30


def num_layers_of(num_bytes: float) -> int:
    """How many layers make a checkpoint of about `num_bytes`."""
    return max(1, round(num_bytes / layer_bytes()))


def num_tensors(num_layers: int) -> int:
    """The tensors of a checkpoint of so many layers."""
    return num_layers * len(layer_tensors(0))


def expert_tensors() -> dict[str, tuple[str, tuple[int, int]]]:
    wide, tall = (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)
    tensors: dict[str, tuple[str, tuple[int, int]]] = {}
    for projection, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", tall)):
        tensors[f"{projection}.weight"] = ("F8_E4M3", shape)
        tensors[f"{projection}.weight_scale_inv"] = ("F32", (shape[0] // BLOCK, shape[1] // BLOCK))
    return tensors


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape)) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[dtype]


def layer_tensors(layer: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    prefix = f"model.layers.{layer}"
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        f"{prefix}.mlp.gate.weight": ("BF16", (NUM_EXPERTS, HIDDEN)),
        f"{prefix}.self_attn.o_proj.weight": ("BF16", (HIDDEN, HIDDEN)),
    }
    for expert in range(NUM_EXPERTS):
        tensors |= {f"{prefix}.mlp.experts.{expert}.{name}": tensor for name, tensor in expert_tensors().items()}
    return tensors


def layer_bytes() -> int:
    return sum(tensor_bytes(*tensor) for tensor in layer_tensors(0).values())


def write_checkpoint(folder: Path, num_layers: int) -> None:
    """Shards of about `SHARD_BYTES`, in the order of the layers, filled with pseudo-random bytes."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": num_layers,
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "n_group": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weight_map: dict[str, str] = {}
    per_shard = max(1, SHARD_BYTES // layer_bytes())
    starts = range(0, num_layers, per_shard)
    for number, start in enumerate(starts, start=1):
        name = f"model-{number:05d}-of-{len(starts):05d}.safetensors"
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        for layer in range(start, min(start + per_shard, num_layers)):
            tensors |= layer_tensors(layer)
        write_shard(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_shard(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        end = position + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    rng = np.random.default_rng(position)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while position > 0:
            file.write(rng.bytes(min(position, 2**26)))
            position -= 2**26


def random_plan(num_layers: int) -> PlacementPlan:
    rng = np.random.default_rng(0)
    experts = np.stack([rng.permutation(NUM_EXPERTS) for _ in range(num_layers)]).astype(np.int32)
    slot_of = np.argsort(experts, axis=1).astype(np.int32)
    return PlacementPlan(
        topology=Topology.single_node(EP_SIZE),
        num_logical_experts=NUM_EXPERTS,
        top_k=TOP_K,
        attention="dp",
        replica_choice="static",
        layer_ids=np.arange(num_layers, dtype=np.int32),
        physical_to_logical=experts,
        rank_of_physical=np.repeat(np.arange(EP_SIZE, dtype=np.int32), NUM_EXPERTS // EP_SIZE),
        dispatch_slot=np.broadcast_to(slot_of[:, None, :], (num_layers, EP_SIZE, NUM_EXPERTS)).copy(),
        method="random",
    )
