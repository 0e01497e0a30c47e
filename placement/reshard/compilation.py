"""What a compilation will write, planned and proven complete, with nothing written yet."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from specmoe.checkpoint import Checkpoint, open_checkpoint
from specmoe.errors import MismatchError, UsageError
from specmoe.hashing import hash_file
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.hf_layout import lay_out_hf
from specmoe.placement.reshard.layout import CheckpointLayout
from specmoe.placement.reshard.manifest import Layout
from specmoe.placement.reshard.moe_model import ByteRange, MoeModel
from specmoe.placement.reshard.rank_layout import lay_out_ranks
from specmoe.placement.reshard.sidecars import find_sidecars
from specmoe.placement.reshard.understand import understand
from specmoe.routing_config import experts_per_token

_PLANNERS = {"ranks": lay_out_ranks, "hf": lay_out_hf}


@dataclass(frozen=True, kw_only=True)
class Compilation:
    """A checkpoint, a plan that fits it, the layout of all safetensors files, and the files to copy beside them."""

    checkpoint: Checkpoint
    plan: PlacementPlan
    layout: CheckpointLayout
    sidecars: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        """SHA-256 over everything that decides the output's bytes: an interrupted run goes on only with the same.

        Weights are too large to read twice: size and time of change stand for them. Sidecars are read.
        """
        state = hashlib.sha256(f"{self.plan.digest}\0{self.layout.layout}".encode())
        for name in self.sidecars:
            state.update(f"\0{name}\0{hash_file(self.checkpoint.path / name)}".encode())
        for path in self.checkpoint.files:
            status = path.stat()
            state.update(f"\0{path.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        for file in self.layout.files:
            state.update(f"\0{file.name}\0{len(file.header)}\0".encode())
            state.update(file.header)
        return state.hexdigest()

    def summary(self) -> dict[str, Any]:
        """For people and programs: files, bytes that a rank reads and holds, and what is replicated."""
        sizes = {file.name: file.num_bytes for file in self.layout.files}
        weights = {file.name: file.num_bytes - len(file.header) for file in self.layout.files}
        copies = [Counter(row.tolist()) for row in self.plan.physical_to_logical]
        result: dict[str, Any] = {
            "layout": self.layout.layout,
            "family": self.layout.family,
            "expert_format": self.layout.expert_format,
            "ep_size": self.plan.ep_size,
            "bytes": sum(sizes.values()),
            "source_bytes": self.checkpoint.num_bytes,
            "replica_slots_per_layer": self.plan.num_physical_experts - self.plan.num_logical_experts,
            "replicated_experts_per_layer": [sum(count > 1 for count in layer.values()) for layer in copies],
            "replica_bytes": sum(weights.values()) - self.checkpoint.num_bytes,
            "files": sizes,
            "copied_files": list(self.sidecars),
        }
        if self.layout.layout == "ranks":
            result |= {
                "shared_bytes": sum(size for name, size in sizes.items() if name.startswith("shared-")),
                "bytes_read_per_rank": _per_rank(sizes),
                "weight_bytes_per_rank": _per_rank(weights),
            }
        return result


def plan_compilation(model: Path, plan: PlacementPlan, layout: Layout) -> Compilation:
    """Plan how checkpoint `model` is written under `plan`; reads headers and tables of expert numbers only, and
    writes nothing.

    Raises `CheckpointError` for a checkpoint that cannot be compiled, `MismatchError` for a plan that does not fit.
    """
    if layout not in _PLANNERS:
        raise UsageError(f"layout is {layout!r}, one of {sorted(_PLANNERS)} was expected")
    checkpoint = open_checkpoint(model)
    understood = understand(checkpoint)
    check_fit(understood, plan)
    planned = _PLANNERS[layout](understood, plan)
    planned.check_complete(checkpoint, _copies(understood, plan) if layout == "ranks" else {})
    return Compilation(
        checkpoint=checkpoint,
        plan=plan,
        layout=planned,
        sidecars=tuple(find_sidecars(checkpoint.path)),
    )


def check_fit(model: MoeModel, plan: PlacementPlan) -> None:
    """Raise `MismatchError` unless `plan` was made for this model."""
    where = model.checkpoint.path
    if plan.layer_ids.tolist() != list(model.layers):
        raise MismatchError(
            f"the plan is for another model: it places layers {_brief(plan.layer_ids.tolist())}, "
            f"{where} has MoE layers {_brief(list(model.layers))}"
        )
    for layer in model.layers.values():
        if layer.num_experts != plan.num_logical_experts:
            raise MismatchError(
                f"the plan is for another model: it places {plan.num_logical_experts} experts, "
                f"layer {layer.layer_id} of {where} has {layer.num_experts}"
            )
    top_k = experts_per_token(model.checkpoint.config)
    if top_k is not None and top_k != plan.top_k:
        raise MismatchError(
            f"the plan is for another model: it is for {plan.top_k} experts per token, {where} uses {top_k}"
        )
    if plan.model_fingerprint not in (None, model.checkpoint.fingerprint):
        raise MismatchError(f"the plan is for another model: its fingerprint is not that of {where}; profile this one")


def _per_rank(sizes: Mapping[str, int]) -> list[int]:
    """Of sizes by file, each rank's: the shared files' and its own."""
    shared = sum(size for name, size in sizes.items() if name.startswith("shared-"))
    return [shared + size for name, size in sizes.items() if name.startswith("experts-")]


def _brief(layers: list[int]) -> str:
    return str(layers) if len(layers) <= 4 else f"[{layers[0]}, {layers[1]}, … {layers[-1]}] ({len(layers)})"


def _copies(model: MoeModel, plan: PlacementPlan) -> dict[ByteRange, int]:
    """How many slots hold each expert's bytes."""
    copies: dict[ByteRange, int] = {}
    for row, layer in enumerate(model.layers.values()):
        held = Counter(plan.physical_to_logical[row].tolist())
        for piece in layer.pieces.values():
            copies |= {span: held[expert] for expert, span in enumerate(piece.ranges)}
    return copies
