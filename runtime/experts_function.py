"""The experts implementation that transformers calls in place of its own, registered under the name "specmoe"."""

import torch

IMPLEMENTATION = "specmoe"


def register_experts_function() -> None:
    """Make `experts_implementation="specmoe"` known to transformers."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, specmoe_experts_forward)


def specmoe_experts_forward(
    experts: torch.nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """[T, H]: what transformers' experts modules return, computed by the layer that `load` tied to the module.

    hidden_states: [T, H]; top_k_index: int64 [T, K], logical experts; top_k_weights: [T, K].
    """
    layer = experts.specmoe_layer
    return layer.forward(hidden_states, top_k_index, top_k_weights)  # type: ignore[union-attr, no-any-return]
