"""An experts implementation for training on a CPU: every expert's rows stand together, padded to a multiple of 128.

Matrix products of a new shape cost a CPU's bfloat16 library far more than a few rows of padding do.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

# Letters in shapes: T tokens, K experts per token, E experts, H hidden size, I expert width, N rows with padding.
NAME = "padded"
ROW_MULTIPLE = 128


def padded_experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The experts' weighted sum [T, H] for hidden_states [T, H], top_k_index int64 [T, K], top_k_weights [T, K].

    `self` is a transformers experts module with `gate_up_proj` [E, 2 * I, H] and `down_proj` [E, H, I].
    """
    T, K = top_k_index.shape
    row_of_pair, rows_of_expert = _arrange(top_k_index.reshape(-1), len(self.down_proj))
    x_NH = hidden_states.new_zeros(sum(rows_of_expert), hidden_states.shape[1])
    x_NH = x_NH.index_copy(0, row_of_pair, hidden_states.repeat_interleave(K, dim=0))
    # Taken apart once: indexing expert by expert would make a full-sized gradient for each of them.
    experts = zip(self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True)
    rows = torch.split(x_NH, rows_of_expert)
    y_NH = torch.cat([_expert(x, gate_up, down) for x, (gate_up, down) in zip(rows, experts, strict=True)])
    pairs_TKH = y_NH.index_select(0, row_of_pair).view(T, K, -1)
    return (pairs_TKH * top_k_weights.unsqueeze(-1)).sum(dim=1).to(hidden_states.dtype)


def _expert(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = functional.linear(x, gate_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate) * up, down)


def _arrange(expert_of_pair: Tensor, num_experts: int) -> tuple[Tensor, list[int]]:
    """The row int64 [T * K] of each (token, expert) pair, and how many rows each expert has."""
    order = expert_of_pair.argsort(stable=True)
    counts = torch.bincount(expert_of_pair, minlength=num_experts)
    rows = (counts + ROW_MULTIPLE - 1) // ROW_MULTIPLE * ROW_MULTIPLE
    shift = (rows.cumsum(0) - rows) - (counts.cumsum(0) - counts)
    row_of_pair = torch.empty_like(order)
    row_of_pair[order] = torch.arange(len(order)) + shift[expert_of_pair[order]]
    return row_of_pair, rows.tolist()


def register() -> str:
    """Make the implementation known to transformers; returns the name for `set_experts_implementation`."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, padded_experts_forward)
    return NAME
