"""Have a MoE block call its experts module through transformers' experts interface, where it does not by itself.

Llama-4 is the one family that does not: its block hands every token to every expert, scaled by the router's score
(0 for all but the chosen) before the expert, not after it.
"""

from types import MethodType
from typing import Any

import torch

from specmoe.errors import CheckpointError
from specmoe.runtime.experts_function import specmoe_experts_forward

LLAMA4_EXPERTS = "Llama4TextExperts"


def adopt_experts(block: Any, experts: Any) -> None:
    """Make the `experts` of `block` run by the plan, in place.

    Raises `CheckpointError` for an unknown module that transformers' interface does not reach.
    """
    # What the interface's decorator leaves on a module.
    if hasattr(experts, "is_transposed"):
        return
    if type(experts).__name__ != LLAMA4_EXPERTS:
        raise CheckpointError(
            f"{type(experts).__name__} does not run through transformers' experts interface, so the plan cannot be "
            "executed; compile with --layout hf instead"
        )
    experts.has_gate, experts.has_bias, experts.is_transposed = True, False, True
    experts._apply_gate = MethodType(_apply_gate, experts)
    object.__setattr__(block, "forward", Llama4Forward(block))


def weighs_inputs(experts: Any) -> bool:
    """Whether the routing weight multiplies an expert's input, and not its output."""
    return type(experts).__name__ == LLAMA4_EXPERTS


class Llama4Forward:
    """The forward of one Llama-4 MoE block."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def __call__(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's output, [T, H], and the router's logits, [T, E]."""
        block = self._block
        rows = hidden_states.reshape(-1, block.hidden_dim)
        scores, logits = block.router(rows)
        weights, index = scores.topk(block.top_k, dim=1)
        out = block.shared_expert(rows) + specmoe_experts_forward(block.experts, rows, index, weights)
        return out, logits


def _apply_gate(experts: Any, gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    activated: torch.Tensor = up * experts.act_fn(gate)
    return activated
