"""Find the routed layers of a loaded model by running one token through it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from specmoe.errors import CheckpointError
from specmoe.profiler.experts_interface import ExpertsModule, RoutingObserver, find_experts


@dataclass(frozen=True, kw_only=True)
class RoutedLayers:
    """The experts modules that text goes through, by decoder layer, and their common sizes."""

    modules: list[ExpertsModule]
    num_logical_experts: int
    top_k: int

    @property
    def layer_ids(self) -> list[int]:
        return [experts.layer_id for experts in self.modules]


def find_routed_layers(model: torch.nn.Module, name: str, device: torch.device) -> RoutedLayers:
    """The routed layers of `model`; a multimodal model's other experts see no text and are left out.

    Raises `CheckpointError` where there are none, or where they differ in experts or experts per token.
    """
    with RoutingObserver(modules := find_experts(model, name)) as observer, torch.inference_mode():
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=device), use_cache=False)
        top_k_of = observer.ran()
    modules = [experts for experts in modules if experts.path in top_k_of]
    if not modules:
        raise CheckpointError(f"{name} runs text through none of its mixture-of-experts layers")
    layer_ids = [experts.layer_id for experts in modules]
    if len(set(layer_ids)) < len(layer_ids):
        raise CheckpointError(f"{name} runs text through two experts modules in one decoder layer, one was expected")
    return RoutedLayers(
        modules=modules,
        num_logical_experts=_the_one(name, "experts", [experts.num_experts for experts in modules]),
        top_k=_the_one(name, "experts per token", [top_k_of[experts.path] for experts in modules]),
    )


def _the_one(name: str, what: str, values: Sequence[int]) -> int:
    if len(set(values)) > 1:
        raise CheckpointError(f"{name} has layers with different numbers of {what} ({sorted(set(values))})")
    return values[0]
