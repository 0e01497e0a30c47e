"""What a router thinks of the experts that it did not choose, on the scale of the weights of those that it chose.

The experts interface passes on only the chosen ones. The router's logits are seen by a hook; which function turns them
into weights is found by trying: of softmax and sigmoid, the one to which the chosen weights are proportional.
"""

from typing import Any

import torch

from specmoe.errors import CheckpointError
from specmoe.runtime.token_places import TokenPlaces

# bfloat16 weights are exact to 2**-9.
MAX_SPREAD = 0.02
ROUTER_NAMES = ("gate", "router")
_FUNCTIONS = (lambda logits: logits.softmax(dim=-1), torch.sigmoid)


class RouterScores:
    """Watches the router of one MoE block (the module that holds the experts module)."""

    def __init__(self, block: torch.nn.Module) -> None:
        self._logits: torch.Tensor | None = None
        self._function: Any = None
        router = next((getattr(block, name) for name in ROUTER_NAMES if hasattr(block, name)), None)
        if not isinstance(router, torch.nn.Module):
            raise CheckpointError(f"{type(block).__name__} has no router that rerouting knows; use overflow='drop'")
        router.register_forward_hook(self._see)

    def of_every_expert(self, top_k_index: torch.Tensor, weights: torch.Tensor, tokens: TokenPlaces) -> torch.Tensor:
        """float32 [T, E]; top_k_index: int64 [T, K] and weights: floating [T, K], what the router made of its logits;
        tokens: which of the rows that it saw they are.

        The first call waits for the device. Raises `CheckpointError` for a router of another kind.
        """
        logits = None if self._logits is None else tokens.only(self._logits)
        if logits is None or logits.shape[0] != weights.shape[0]:
            raise CheckpointError(
                "the router's logits cannot be seen, so rerouting is not possible; use overflow='drop'"
            )
        if len(weights) == 0:
            return logits.float()
        if self._function is None:
            self._function = _find_function(logits.float(), top_k_index, weights.float())
        scores = self._function(logits.float())
        scale = weights.float().sum(dim=1) / scores.gather(1, top_k_index).sum(dim=1)
        return torch.as_tensor(scores * scale[:, None])

    def _see(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        self._logits = logits.reshape(-1, logits.shape[-1])


def _find_function(logits: torch.Tensor, top_k_index: torch.Tensor, weights: torch.Tensor) -> Any:
    for function in _FUNCTIONS:
        ratio = weights / function(logits).gather(1, top_k_index)
        if bool(((ratio.amax(dim=1) - ratio.amin(dim=1)) <= MAX_SPREAD * ratio.amax(dim=1)).all()):
            return function
    raise CheckpointError(
        "the router's weights follow neither a softmax nor a sigmoid of its logits, so rerouting cannot score other "
        "experts; use overflow='drop'"
    )
