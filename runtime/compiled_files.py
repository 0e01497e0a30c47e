"""Open the files of a compiled checkpoint that one process reads, and refuse any that is not what was compiled."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from specmoe.artifact import read_description
from specmoe.checkpoint import CONFIG_FILE
from specmoe.errors import ArtifactError, MismatchError
from specmoe.hashing import hash_file
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.manifest import PLAN_FILE, RANK_FILE_FORMAT, CompiledManifest
from specmoe.runtime.expert_parameters import ExpertParameters
from specmoe.runtime.mapped_tensors import MappedFile
from specmoe.runtime.quantization_config import stated_quantization
from specmoe.runtime.stored_weights import fp8_block
from specmoe.safetensors_header import parse_json_object

_HASHED_AT_ONCE = 4


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

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """What the model's configuration states, empty where it states none."""
        path = self.folder / CONFIG_FILE
        return stated_quantization(parse_json_object(path, path.read_bytes()), str(path))

    def names_for(self, ranks: range) -> list[str]:
        """Every file that the process which holds `ranks` may read: all but the rank files of the others."""
        own = [self.manifest.rank_file(rank) for rank in ranks]
        return [*sorted(self.manifest.files.keys() - set(self.manifest.rank_files)), *own]

    def check(self, names: Iterable[str], *, hashes: bool) -> None:
        """Raise `ArtifactError` for a file that is missing or whose size, or SHA-256 where `hashes`, differs."""
        listed = list(names)
        for name in listed:
            path, record = self.folder / name, self.manifest.files[name]
            if not path.is_file():
                raise ArtifactError(f"{path} is missing; compile the checkpoint again")
            if path.stat().st_size != record.num_bytes:
                raise ArtifactError(
                    f"{path} has {path.stat().st_size} bytes, the manifest says {record.num_bytes}; it was cut or "
                    "replaced, compile the checkpoint again"
                )
        if hashes:
            self._check_hashes(listed)

    def _check_hashes(self, names: Sequence[str]) -> None:
        """Several files at once: hashing is what takes the time where a process reads many ranks' files."""
        with ThreadPoolExecutor(min(_HASHED_AT_ONCE, len(os.sched_getaffinity(0)))) as pool:
            found = list(pool.map(hash_file, [self.folder / name for name in names]))
        for name, sha256 in zip(names, found, strict=True):
            if sha256 != self.manifest.files[name].sha256:
                raise ArtifactError(
                    f"{self.folder / name} was altered since it was compiled: its SHA-256 differs from the manifest's"
                )

    def shared_tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that is not a routed expert's, under the source checkpoint's name, mapped into memory."""
        files = [MappedFile(self.folder / name) for name in self.manifest.shared_files]
        return {name: tensor for file in files for name, tensor in file.tensors.items()}

    def expert_parameters(self, ranks: range) -> ExpertParameters:
        """The expert parameters of consecutive `ranks`, from their files and no others."""
        files = [self._rank_file(rank) for rank in ranks]
        return ExpertParameters.of_files(files, self.manifest.expert_modules, fp8_block(self.quantization))

    def _rank_file(self, rank: int) -> MappedFile:
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
        file = MappedFile(path)
        slots = int(self.plan.slot_offsets[rank + 1] - self.plan.slot_offsets[rank])
        for name, entry in file.entries.items():
            if not entry.shape or entry.shape[0] != slots:
                raise ArtifactError(f"{path}: tensor {name} does not hold the rank's {slots} slots")
        return file
