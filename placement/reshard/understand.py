"""Sort a checkpoint's tensors into experts, routers and the rest, each tensor exactly once."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from specmoe.checkpoint import Checkpoint
from specmoe.errors import CheckpointError
from specmoe.placement.reshard.block_reader import BlockReader
from specmoe.placement.reshard.families import DECODER_PREFIXES, find_family
from specmoe.placement.reshard.family import Family
from specmoe.placement.reshard.moe_model import MoeLayer, MoeModel
from specmoe.routing_config import num_decoder_layers

_LAYER_NAME = re.compile(
    rf"(?P<start>(?:{'|'.join(map(re.escape, DECODER_PREFIXES))})layers\.(?P<layer>0|[1-9][0-9]{{0,5}})\.)(?P<rest>.+)"
)

# In the names of experts, routers and MoE blocks of every published family.
_MOE_NAME = re.compile("expert|router|moe")


class _Block(NamedTuple):
    layer_id: int
    prefix: str


def understand(checkpoint: Checkpoint) -> MoeModel:
    """Sort the tensors of `checkpoint`; raises `CheckpointError` for a dense model, an unknown family or surprises."""
    where = str(checkpoint.path)
    _refuse_dense(checkpoint)
    family = find_family(checkpoint.config, where, _expert_patterns(checkpoint))
    last = num_decoder_layers(checkpoint.config, where)
    layers: dict[int, MoeLayer] = {}
    for block, names in sorted(_moe_blocks(checkpoint, family).items()):
        if last is not None and block.layer_id >= last:
            continue
        if block.layer_id in layers:
            raise CheckpointError(f"{where} has two blocks {block.prefix} and {layers[block.layer_id].prefix}")
        layers[block.layer_id] = BlockReader(checkpoint, family, block.prefix, block.layer_id).read(names)
    if not layers:
        router = family.block_prefix + family.router_weight
        raise CheckpointError(f"{where} has no mixture-of-experts layers: no layer has a router {router}")
    return MoeModel(checkpoint=checkpoint, family=family, layers=layers, rest=_rest(checkpoint, layers))


def _refuse_dense(checkpoint: Checkpoint) -> None:
    if not any(_MOE_NAME.search(name) for name in checkpoint.tensors):
        raise CheckpointError(f"{checkpoint.path} has no mixture-of-experts layers; there is nothing to place")


def _expert_patterns(checkpoint: Checkpoint) -> list[str]:
    """The names of experts', routers' and MoE blocks' tensors, numbers replaced by N, each pattern once."""
    names = filter(_MOE_NAME.search, checkpoint.tensors)
    return sorted({re.sub(r"(?<=\.)\d+(?=\.)", "N", name) for name in names})


def _moe_blocks(checkpoint: Checkpoint, family: Family) -> dict[_Block, list[str]]:
    """The tensors, relative to the block, of every block that has a router."""
    blocks: dict[_Block, list[str]] = defaultdict(list)
    for name in checkpoint.tensors:
        match = _LAYER_NAME.fullmatch(name)
        if match and match["rest"].startswith(family.block_prefix):
            block = _Block(int(match["layer"]), match["start"] + family.block_prefix)
            blocks[block].append(name.removeprefix(block.prefix))
    for block, names in blocks.items():
        _refuse_experts_without_router(checkpoint, family, block, names)
    return {block: names for block, names in blocks.items() if family.router_weight in names}


def _refuse_experts_without_router(checkpoint: Checkpoint, family: Family, block: _Block, names: Sequence[str]) -> None:
    if family.router_weight in names:
        return
    for name in names:
        if name.startswith((f"{family.experts}.", *family.fused)):
            raise CheckpointError(
                f"{checkpoint.path} has {block.prefix}{name} but no router {block.prefix}{family.router_weight}"
            )


def _rest(checkpoint: Checkpoint, layers: Mapping[int, MoeLayer]) -> frozenset[str]:
    taken: set[str] = set()
    for layer in layers.values():
        taken.update(layer.routers, layer.expert_numbers)
        taken.update(span.tensor for piece in layer.pieces.values() for span in piece.ranges)
    return frozenset(checkpoint.tensors) - taken
