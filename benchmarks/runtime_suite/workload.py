"""What the ranks serve: requests of equal length, and which experts each of their tokens uses.

Shape letters: N requests, P tokens of a prompt, D generated ones, L MoE layers, K experts per token, V vocabulary.
P + D - 1 tokens of a request pass through the model: the last one that is generated does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from specmoe.profiler.routing_profile import RoutingSample


@dataclass(frozen=True, kw_only=True)
class Workload:
    """tokens: int64 [N, P + D]; expert_ids: uint8 [N, P + D - 1, L, K]; first_logits: float32 [N, V], the unmodified
    model's after each prompt. replay: whether routing and generated tokens are given (to a model of random weights),
    and not the model's own.
    """

    tokens: torch.Tensor
    expert_ids: torch.Tensor
    first_logits: torch.Tensor
    prompt_tokens: int
    replay: bool

    @property
    def num_requests(self) -> int:
        return self.tokens.shape[0]

    @property
    def new_tokens(self) -> int:
        return self.tokens.shape[1] - self.prompt_tokens

    @property
    def num_layers(self) -> int:
        return self.expert_ids.shape[2]

    def passes(self) -> Iterator[slice]:
        """The columns of `tokens` that each forward pass takes: the prompts, then one at a time."""
        yield slice(0, self.prompt_tokens)
        for column in range(self.prompt_tokens, self.tokens.shape[1] - 1):
            yield slice(column, column + 1)

    def sample(self, columns: slice) -> RoutingSample:
        """The tokens of these columns, request by request, as `evaluate` reads them."""
        ids = self.expert_ids[:, columns]
        tokens = self.tokens[:, : self.expert_ids.shape[1]][:, columns]
        return RoutingSample(
            expert_ids=ids.flatten(0, 1).numpy(),
            token_ids=tokens.flatten().numpy().astype(np.int32),
            request_ids=np.repeat(np.arange(len(tokens), dtype=np.int32), tokens.shape[1]),
        )

    def save(self, path: Path) -> None:
        tensors = {"tokens": self.tokens, "expert_ids": self.expert_ids, "first_logits": self.first_logits}
        metadata = {"prompt_tokens": str(self.prompt_tokens), "replay": str(self.replay)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)

    @classmethod
    def load(cls, path: Path) -> "Workload":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in ("tokens", "expert_ids", "first_logits")}
        return cls(**tensors, prompt_tokens=int(metadata["prompt_tokens"]), replay=metadata["replay"] == "True")


def request_starts(request_ids: NDArray[np.int32], min_tokens: int, number: int) -> NDArray[np.int64]:
    """int64 [number]: where requests of at least `min_tokens` tokens begin, evenly over the trace (all its domains)."""
    return _long_requests(request_ids, min_tokens, number)[0]


def request_stretches(request_ids: NDArray[np.int32], num_tokens: int, number: int) -> NDArray[np.int64]:
    """int64 [number]: where stretches of `num_tokens` tokens begin, one a request, evenly over the requests' lengths:
    answers begin unlike they go on."""
    starts, lengths = _long_requests(request_ids, num_tokens, number)
    # The golden ratio's multiples fill [0, 1) evenly.
    return starts + ((lengths - num_tokens) * (np.arange(number) * 0.618034 % 1)).astype(np.int64)


def _long_requests(
    request_ids: NDArray[np.int32], min_tokens: int, number: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and lengths of `number` requests."""
    starts = np.flatnonzero(np.diff(request_ids, prepend=request_ids[0] - 1))
    lengths = np.diff(starts, append=len(request_ids))
    long_enough = np.flatnonzero(lengths >= min_tokens)
    if len(long_enough) < number:
        raise SystemExit(f"the trace has {len(long_enough)} requests of {min_tokens} tokens, {number} are wanted")
    chosen = long_enough[np.linspace(0, len(long_enough) - 1, number).astype(int)]
    return starts[chosen], lengths[chosen]


def gather_requests(values: NDArray[np.generic], starts: NDArray[np.int64], length: int) -> torch.Tensor:
    """[number, length, …]: the first `length` entries of each request of a trace's array."""
    return torch.tensor(np.stack([values[start : start + length] for start in starts]))
