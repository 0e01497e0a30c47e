"""Bring one process's expert parameters to where they are used: mapped if they lie ready in a file, else written once.

Dimension 0 of a parameter counts the slots of the process's ranks, in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specmoe.errors import ArtifactError
from specmoe.runtime.mapped_tensors import MappedFile
from specmoe.runtime.stored_weights import Block, SlotWeights, slot_weights


@dataclass(frozen=True, kw_only=True)
class RankWeights:
    """A rank's file and the parameters in it, by full name."""

    file: MappedFile
    parameters: Mapping[str, SlotWeights]


@dataclass(frozen=True, kw_only=True)
class ExpertParameters:
    """The parameters of all experts modules that one process holds."""

    ranks: Sequence[RankWeights]

    @classmethod
    def of_files(cls, files: Sequence[MappedFile], modules: Sequence[str], block: Block) -> "ExpertParameters":
        """files: of the process's ranks, in order; modules: the experts modules; block: of FP8 scales."""
        ranks = [RankWeights(file=file, parameters=_parameters(file, modules, block)) for file in files]
        if any(_shapes(rank) != _shapes(ranks[0]) for rank in ranks):
            raise ArtifactError("the rank files hold different tensors; compile the checkpoint again")
        return cls(ranks=ranks)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters' shapes by full name."""
        num_slots = {name: sum(rank.parameters[name].num_slots for rank in self.ranks) for name in self._first}
        return {name: (num_slots[name], *weights.shape) for name, weights in self._first.items()}

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the first parameter that is stored as plain numbers."""
        return next((weights.stored.dtype for weights in self._first.values() if weights.stored is not None), None)

    def place(self, model: Any, device: torch.device) -> None:
        """Give `model`, whose parameters of these names have their shapes and dtypes, the weights, on `device`."""
        for name in self.shapes:
            module_name, _, parameter_name = name.rpartition(".")
            module = model.get_submodule(module_name)
            weights = self._on_device(name, getattr(module, parameter_name).dtype, device)
            setattr(module, parameter_name, torch.nn.Parameter(weights, requires_grad=False))

    def _on_device(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        stored = self._first[name].stored
        if stored is not None and len(self.ranks) == 1 and (stored.dtype, stored.device) == (dtype, device):
            return stored
        whole = torch.empty(self.shapes[name], dtype=dtype, device=device)
        place = 0
        for rank in self.ranks:
            weights = rank.parameters[name]
            for slot in range(weights.num_slots):
                whole[place + slot].copy_(weights.read(slot))
            place += weights.num_slots
            module_name = name.rpartition(".")[0]
            for source in weights.sources:
                rank.file.forget(f"{module_name}.{source}")
        return whole

    @property
    def _first(self) -> Mapping[str, SlotWeights]:
        return self.ranks[0].parameters


def _parameters(file: MappedFile, modules: Sequence[str], block: Block) -> dict[str, SlotWeights]:
    by_module: dict[str, dict[str, torch.Tensor]] = {module: {} for module in modules}
    for name, tensor in file.tensors.items():
        module = next((prefix for prefix in _prefixes(name) if prefix in by_module), None)
        if module is None:
            raise ArtifactError(f"{file.path}: tensor {name} belongs to none of the manifest's experts modules")
        by_module[module][name] = tensor
    return {name: w for module, own in by_module.items() for name, w in slot_weights(module, own, block).items()}


def _prefixes(name: str) -> list[str]:
    """The modules that a tensor of this name may belong to: "a.b.c" -> "a.b", "a"."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _shapes(rank: RankWeights) -> dict[str, tuple[int, ...]]:
    return {name: weights.shape for name, weights in rank.parameters.items()}
