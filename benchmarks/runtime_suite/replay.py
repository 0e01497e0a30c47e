"""Routing that is given, and not the router's own: the router of each MoE layer answers with recorded expert ids."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Replay:
    """The experts of the forward pass that runs; own_of: the batch's tokens that a layer of this process sees."""

    def __init__(self, routers: Sequence[Any], own_of: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        self._own_of = own_of or (lambda values: values)
        self._expert_ids = torch.zeros(0)
        for row, router in enumerate(routers):
            router.forward = ReplayedRouter(self, row, router.num_experts)

    def begin_forward(self, expert_ids: torch.Tensor) -> None:
        """expert_ids: integer [B, S, L, K], of the batch that runs next."""
        self._expert_ids = expert_ids.flatten(0, 1).long()

    def of_layer(self, row: int) -> torch.Tensor:
        """int64 [n, K]: the experts of the tokens that this process brings to its MoE layer `row`."""
        return self._own_of(self._expert_ids[:, row])


class ReplayedRouter:
    """In place of the forward of one Qwen3-MoE router; all experts of a token weigh the same."""

    def __init__(self, replay: Replay, row: int, num_experts: int) -> None:
        self._replay = replay
        self._row = row
        self._num_experts = num_experts

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [n, E] (nobody reads them), weights [n, K], experts int64 [n, K]."""
        index = self._replay.of_layer(self._row)
        weights = hidden.new_full(index.shape, 1 / index.shape[1])
        return hidden.new_zeros((len(index), self._num_experts)), weights, index


def routers_of(model: Any) -> list[Any]:
    """The routers of a Qwen3-MoE, by MoE layer."""
    return [layer.mlp.gate for layer in model.get_decoder().layers if hasattr(layer.mlp, "gate")]
