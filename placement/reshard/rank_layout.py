"""Lay out one file per rank with that rank's slots, and shared files with everything else (layout `ranks`).

Slot-major: dimension 0 of every expert tensor counts the rank's slots in the plan's order, and plain weights are in
transformers' in-memory layout, so that a loader maps the file and uses the bytes where they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from specmoe.artifact import METADATA_KEY, canonical_json
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.layout import CheckpointLayout, OutputFile, OutputTensor, whole
from specmoe.placement.reshard.manifest import RANK_FILE_FORMAT, rank_file_name
from specmoe.placement.reshard.moe_model import ExpertPiece, MoeLayer, MoeModel
from specmoe.safetensors_header import DTYPE_BITS

SHARED_FILE_BYTES = 5 * 10**9


def lay_out_ranks(model: MoeModel, plan: PlacementPlan) -> CheckpointLayout:
    """The layout `ranks` of `model` under `plan`, which must fit it."""
    modules = tuple(_expert_module(model, layer) for layer in model.layers.values())
    files = [_rank_file(model, plan, rank, modules) for rank in range(plan.ep_size)]
    return CheckpointLayout(
        layout="ranks",
        family=model.family.name,
        expert_format="fused" if model.has_plain_experts else "stacked",
        expert_modules=modules,
        files=(*_shared_files(model), *files),
    )


def _expert_module(model: MoeModel, layer: MoeLayer) -> str:
    """The experts module's name in transformers' module tree, as far as the family's row knows it."""
    family = model.family
    decoder, number, _ = layer.prefix.partition("layers.")
    return f"{family.memory_prefixes.get(decoder, decoder)}{number}{layer.layer_id}.{family.memory_experts}"


def _rank_file(model: MoeModel, plan: PlacementPlan, rank: int, modules: Sequence[str]) -> OutputFile:
    first, last = plan.slot_offsets[rank : rank + 2]
    tensors: list[OutputTensor] = []
    for row, layer in enumerate(model.layers.values()):
        experts = [int(expert) for expert in plan.physical_to_logical[row, first:last]]
        stack = _parameters if model.has_plain_experts else _pieces
        tensors += stack(model, layer, modules[row], experts)
    # Wide elements first keep every tensor aligned to its own element size, as the safetensors library orders them.
    tensors.sort(key=lambda tensor: -DTYPE_BITS[tensor.dtype])
    description = {
        "format": RANK_FILE_FORMAT,
        "rank": rank,
        "ep_size": plan.ep_size,
        "plan_digest": plan.digest,
        "model_fingerprint": model.checkpoint.fingerprint,
    }
    return OutputFile(
        name=rank_file_name(rank, plan.ep_size),
        tensors=tuple(tensors),
        metadata={METADATA_KEY: canonical_json(description)},
    )


def _parameters(model: MoeModel, layer: MoeLayer, module: str, experts: Sequence[int]) -> Iterator[OutputTensor]:
    """Plain weights: transformers' parameters, the rows of their projections one after the other in each slot."""
    if layer.pieces.keys() != set(model.family.projection_weights):
        yield from _pieces(model, layer, module, experts)
        return
    for parameter, projections in model.family.parameters.items():
        pieces = [layer.pieces[f"{projection}.weight"] for projection in projections]
        rows = sum(piece.shape[0] for piece in pieces)
        yield _stack(f"{module}.{parameter}", pieces, (rows, *pieces[0].shape[1:]), experts)


def _pieces(model: MoeModel, layer: MoeLayer, module: str, experts: Sequence[int]) -> Iterator[OutputTensor]:
    """Every piece for itself under its own label, stacked by slot."""
    for label, piece in layer.pieces.items():
        tensor = _stack(f"{module}.{label}", [piece], piece.shape, experts)
        yield _turned(tensor, piece) if piece.is_transposed and model.has_plain_experts else tensor


def _turned(tensor: OutputTensor, piece: ExpertPiece) -> OutputTensor:
    """`tensor`, stacked from `piece`, in transformers' orientation."""
    rows, columns = piece.shape
    return replace(tensor, shape=(tensor.shape[0], columns, rows), transposed=(rows, columns))


def _stack(name: str, pieces: Sequence[ExpertPiece], shape: tuple[int, ...], experts: Sequence[int]) -> OutputTensor:
    return OutputTensor(
        name=name,
        dtype=pieces[0].dtype,
        shape=(len(experts), *shape),
        ranges=tuple(piece.ranges[expert] for expert in experts for piece in pieces),
    )


def _shared_files(model: MoeModel) -> list[OutputFile]:
    """Everything but experts, in the order of the source's bytes, in files of about `SHARED_FILE_BYTES`."""
    checkpoint = model.checkpoint
    routers = {name for layer in model.layers.values() for name in (*layer.routers, *layer.expert_numbers)}
    names = checkpoint.in_file_order(model.rest | routers)
    groups: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in (whole(checkpoint, name) for name in names):
        if groups[-1] and filled + tensor.num_bytes > SHARED_FILE_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.num_bytes
    return [
        OutputFile(name=f"shared-{number:05d}-of-{len(groups):05d}.safetensors", tensors=tuple(group))
        for number, group in enumerate(groups, start=1)
    ]
