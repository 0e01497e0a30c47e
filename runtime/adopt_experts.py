"""Have a MoE block call its experts module through transformers' experts interface, where it does not by itself.

- Llama-4's block hands every token to every expert, scaled by the router's score (0 for all but the chosen) before the
  expert, not after it.
- Step 3.7's experts module has the interface's forward without being known to it.
- So has LongCat-Flash's, whose router also chooses experts that compute nothing: they hand on the token as it is.
"""

from types import MethodType
from typing import Any

import torch

from specmoe.errors import CheckpointError
from specmoe.runtime.experts_function import specmoe_experts_forward

LLAMA4_EXPERTS = "Llama4TextExperts"
STEP_EXPERTS = "Step3p7Experts"
LONGCAT_EXPERTS = "LongcatFlashExperts"


def adopt_experts(block: Any, experts: Any) -> None:
    """Make the `experts` of `block` run by the plan, in place.

    Raises `CheckpointError` for an unknown module that transformers' interface does not reach.
    """
    # What the interface's decorator leaves on a module.
    if hasattr(experts, "is_transposed"):
        return
    kind = type(experts).__name__
    if kind not in (LLAMA4_EXPERTS, STEP_EXPERTS, LONGCAT_EXPERTS):
        raise CheckpointError(
            f"{kind} does not run through transformers' experts interface, so the plan cannot be executed; compile "
            "with --layout hf instead"
        )
    experts.has_gate, experts.has_bias, experts.is_transposed = True, False, kind == LLAMA4_EXPERTS
    if not hasattr(experts, "_apply_gate"):
        experts._apply_gate = MethodType(_apply_gate, experts)
    if kind == LLAMA4_EXPERTS:
        object.__setattr__(block, "forward", Llama4Forward(block))
    else:
        forward = longcat_experts_forward if kind == LONGCAT_EXPERTS else specmoe_experts_forward
        object.__setattr__(experts, "forward", MethodType(forward, experts))


def may_choose_none(experts: Any) -> bool:
    """Whether a token may choose fewer than K experts, and -1 in place of the others."""
    return type(experts).__name__ == LONGCAT_EXPERTS


def weighs_inputs(experts: Any) -> bool:
    """Whether the routing weight multiplies an expert's input, and not its output."""
    return type(experts).__name__ == LLAMA4_EXPERTS


def longcat_experts_forward(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """[T, H]; the arguments are those of `specmoe_experts_forward`, with experts past the last one for those that
    compute nothing: they add the token itself by their weight, where it is."""
    is_idle = top_k_index >= experts.num_routed_experts
    computed = specmoe_experts_forward(experts, hidden_states, top_k_index.masked_fill(is_idle, -1), top_k_weights)
    idle_weight = (top_k_weights * is_idle).sum(dim=1, keepdim=True)
    unchanged: torch.Tensor = hidden_states * idle_weight
    return computed + unchanged.to(computed.dtype)


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
