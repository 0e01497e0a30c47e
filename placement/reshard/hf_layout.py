"""Lay out an ordinary checkpoint whose experts are renumbered by the plan and its routers with them (layout `hf`).

New expert `i` of a layer is old expert `physical_to_logical[row, i]`. Files keep the source's names and the order of
its bytes: per-expert tensors are only renamed, fused ones and routers are permuted along their expert axis, and tables
of expert numbers are written anew. Routing then picks the same experts under new numbers; a tie between equal scores
may fall differently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from specmoe.errors import CheckpointError, MismatchError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.expert_numbers import renumbered
from specmoe.placement.reshard.layout import CheckpointLayout, OutputFile, OutputTensor, whole
from specmoe.placement.reshard.manifest import PLAN_FILE
from specmoe.placement.reshard.moe_model import ByteRange, MoeLayer, MoeModel
from specmoe.routing_config import num_expert_groups


def lay_out_hf(model: MoeModel, plan: PlacementPlan) -> CheckpointLayout:
    """The layout `hf` of `model` under `plan`; raises `MismatchError` for a plan that it cannot express."""
    check_expressible(plan, num_expert_groups(model.checkpoint.config, str(model.checkpoint.path)))
    changed: dict[str, OutputTensor] = {}
    for row, layer in enumerate(model.layers.values()):
        changed |= _permuted(model, layer, [int(expert) for expert in plan.physical_to_logical[row]])
    checkpoint = model.checkpoint
    files = []
    by_file = groupby(checkpoint.in_file_order(checkpoint.tensors), key=lambda name: checkpoint.tensors[name].file)
    for path, names in by_file:
        if path.name == PLAN_FILE:
            raise CheckpointError(f"{path} has the name of the plan in the output; rename that file of the checkpoint")
        tensors = tuple(changed.get(name) or whole(checkpoint, name) for name in names)
        files.append(OutputFile(name=path.name, tensors=tensors))
    return CheckpointLayout(
        layout="hf",
        family=model.family.name,
        expert_format="fused" if model.has_plain_experts else "stacked",
        expert_modules=(),
        files=tuple(files),
    )


def check_expressible(plan: PlacementPlan, num_groups: int) -> None:
    """Raise `MismatchError` unless an ordinary checkpoint, read in contiguous blocks by each rank, can be the plan."""
    _refuse_replicas(plan)
    _refuse_uneven_ranks(plan)
    _refuse_torn_groups(plan, num_groups)


def weight_index(files: Sequence[OutputFile]) -> dict[str, object]:
    """The JSON object of `model.safetensors.index.json` for `files`."""
    total = sum(tensor.num_bytes for file in files for tensor in file.tensors)
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _permuted(model: MoeModel, layer: MoeLayer, old_of_new: Sequence[int]) -> Mapping[str, OutputTensor]:
    """The layer's expert and router tensors as they are written, by the name of the source tensor in whose place."""
    checkpoint = model.checkpoint
    outputs: dict[str, OutputTensor] = {}
    for piece in layer.pieces.values():
        if piece.is_fused:
            name = piece.ranges[0].tensor
            outputs[name] = _reordered(model, name, [piece.ranges[old] for old in old_of_new])
            continue
        for new, old in enumerate(old_of_new):
            name = piece.ranges[old].tensor
            outputs[name] = whole(checkpoint, name, f"{layer.prefix}{model.family.experts}.{new}.{piece.label}")
    for name, axis in layer.routers.items():
        outputs[name] = _permuted_router(model, name, axis, old_of_new)
    for name in layer.expert_numbers:
        outputs[name] = replace(whole(checkpoint, name), content=renumbered(checkpoint, name, old_of_new))
    return outputs


def _permuted_router(model: MoeModel, name: str, axis: int, old_of_new: Sequence[int]) -> OutputTensor:
    """Entries along `axis`, before which all sizes are 1; those past the experts stay where they are."""
    entry = model.checkpoint.tensors[name]
    step = entry.num_bytes // entry.shape[axis]
    order = [*old_of_new, *range(len(old_of_new), entry.shape[axis])]
    return _reordered(model, name, [ByteRange(name, old * step, (old + 1) * step) for old in order])


def _reordered(model: MoeModel, name: str, ranges: Sequence[ByteRange]) -> OutputTensor:
    entry = model.checkpoint.tensors[name]
    return OutputTensor(name=name, dtype=entry.dtype, shape=entry.shape, ranges=tuple(ranges))


def _refuse_replicas(plan: PlacementPlan) -> None:
    if plan.num_physical_experts != plan.num_logical_experts:
        raise MismatchError(
            f"the plan has {plan.num_physical_experts} slots for {plan.num_logical_experts} experts, and layout hf "
            "cannot hold replicas; solve without extra slots for an ep_size that divides the experts, "
            "or use --layout ranks"
        )


def _refuse_uneven_ranks(plan: PlacementPlan) -> None:
    base, more = divmod(plan.num_physical_experts, plan.ep_size)
    contiguous = np.repeat(np.arange(plan.ep_size), [base + (rank < more) for rank in range(plan.ep_size)])
    if not np.array_equal(plan.rank_of_physical, contiguous):
        raise MismatchError(
            "the plan's ranks have unequal numbers of slots, which an engine's contiguous placement cannot follow; "
            "use --layout ranks"
        )


def _refuse_torn_groups(plan: PlacementPlan, num_groups: int) -> None:
    """Group-limited routing: each new block of E / G experts must be one old block, in any order inside."""
    if num_groups == 1:
        return
    if plan.num_logical_experts % num_groups:
        raise MismatchError(f"{plan.num_logical_experts} experts cannot form the model's {num_groups} groups")
    group_size = plan.num_logical_experts // num_groups
    old_groups = plan.physical_to_logical.reshape(plan.num_layers, num_groups, group_size) // group_size
    torn = np.flatnonzero((old_groups != old_groups[:, :, :1]).any(axis=(1, 2)))
    if torn.size:
        raise MismatchError(
            f"the model routes within {num_groups} groups of experts and the plan tears them apart (layer "
            f"{plan.layer_ids[torn[0]]}), which would change its output; solve with --group-limited, "
            "or use --layout ranks, which has no such limit"
        )
