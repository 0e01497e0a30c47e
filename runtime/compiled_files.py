"""Open the files of a compiled checkpoint that one process reads, and refuse any that is not what was compiled."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from specmoe.artifact import read_description
from specmoe.errors import ArtifactError, MismatchError
from specmoe.hashing import hash_file
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.manifest import PLAN_FILE, RANK_FILE_FORMAT, CompiledManifest
from specmoe.runtime.mapped_tensors import map_tensors


@dataclass(frozen=True, kw_only=True)
class CompiledFiles:
    """A compiled checkpoint of layout `ranks` whose manifest and plan have been read and belong together."""

    folder: Path
    manifest: CompiledManifest
    plan: PlacementPlan

    @classmethod
    def open(cls, folder: Path) -> "CompiledFiles":
        """Raises `ArtifactError` or `MismatchError`, one sentence each, for what is not a whole compiled checkpoint."""
        manifest = CompiledManifest.load(folder)
        if manifest.layout != "ranks":
            raise MismatchError(
                f"{folder} has the layout 'hf', which transformers loads by itself; "
                "specmoe.load expects one compiled with --layout ranks"
            )
        if manifest.expert_format != "fused":
            raise MismatchError(
                f"{folder} holds quantized experts, which this runtime cannot multiply; "
                "compile an unquantized checkpoint, or use --layout hf with an engine that can"
            )
        if unlisted := manifest.unlisted_files(folder):
            raise ArtifactError(
                f"{folder} holds {unlisted[0]}, which its manifest does not list and which would change the model "
                "unnoticed; remove it, or compile the checkpoint again"
            )
        plan = PlacementPlan.load(folder / PLAN_FILE)
        if plan.digest != manifest.plan_digest:
            raise MismatchError(f"{folder / PLAN_FILE} is not the plan that the checkpoint was compiled with")
        if (plan.ep_size, plan.num_layers) != (manifest.ep_size, len(manifest.expert_modules)):
            raise MismatchError(
                f"{folder}: the plan has {plan.ep_size} ranks and {plan.num_layers} layers, the manifest "
                f"{manifest.ep_size} and {len(manifest.expert_modules)}"
            )
        return cls(folder=folder, manifest=manifest, plan=plan)

    def names_for(self, ranks: range) -> list[str]:
        """Every file that the process which holds `ranks` may read: all but the rank files of the others."""
        own = [self.manifest.rank_file(rank) for rank in ranks]
        return [*sorted(self.manifest.files.keys() - set(self.manifest.rank_files)), *own]

    def check(self, names: Iterable[str], *, hashes: bool) -> None:
        """Raise `ArtifactError` for a file that is missing or whose size, or SHA-256 where `hashes`, differs."""
        for name in names:
            path, record = self.folder / name, self.manifest.files[name]
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; compile the checkpoint again")
            if path.stat().st_size != record.num_bytes:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size} bytes, the manifest says {record.num_bytes}; it was cut or "
                    "replaced, compile the checkpoint again"
                )
            if hashes and hash_file(path) != record.sha256:
                raise ArtifactError(
                    f"{path} was altered since it was compiled: its SHA-256 differs from the manifest's"
                )

    def shared_tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that is not a routed expert's, under the source checkpoint's name, mapped into memory."""
        tensors: dict[str, torch.Tensor] = {}
        for name in self.manifest.shared_files:
            tensors |= map_tensors(self.folder / name)
        return tensors

    def expert_tensors(self, ranks: range) -> dict[str, torch.Tensor]:
        """The expert tensors of consecutive `ranks`, dimension 0 being their slots in order; one rank's are mapped."""
        by_rank = [self._rank_tensors(rank) for rank in ranks]
        if any(tensors.keys() != by_rank[0].keys() for tensors in by_rank):
            raise ArtifactError(f"the rank files of {self.folder} name different tensors; compile the checkpoint again")
        if len(by_rank) == 1:
            return by_rank[0]
        return {name: torch.cat([tensors[name] for tensors in by_rank]) for name in by_rank[0]}

    def _rank_tensors(self, rank: int) -> dict[str, torch.Tensor]:
        path = self.folder / self.manifest.rank_file(rank)
        description = read_description(path)
        expected = {
            "format": RANK_FILE_FORMAT,
            "rank": rank,
            "plan_digest": self.manifest.plan_digest,
            "model_fingerprint": self.manifest.model_fingerprint,
        }
        for key, value in expected.items():
            if description.get(key) != value:
                raise MismatchError(f"{path} has {key} {description.get(key)!r} in its header, {value!r} was expected")
        tensors = map_tensors(path)
        slots = int(self.plan.slot_offsets[rank + 1] - self.plan.slot_offsets[rank])
        for name, tensor in tensors.items():
            if tensor.dim() == 0 or tensor.shape[0] != slots:
                raise ArtifactError(f"{path}: tensor {name} does not hold the rank's {slots} slots")
        return tensors
