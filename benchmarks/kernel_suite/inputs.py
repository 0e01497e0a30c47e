"""The models' shapes and random routing for them."""

from dataclasses import dataclass

import numpy as np
import torch

from specmoe.kernels.routing_tables import RoutingTables
from specmoe.placement.plan import ReplicaChoice


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model's MoE layer: E experts, K per token, hidden size H, the experts' inner size."""

    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int


SHAPES = {
    "Mixtral-8x7B": Shape(num_experts=8, top_k=2, hidden_size=4096, intermediate_size=14336),
    "Qwen3-30B": Shape(num_experts=128, top_k=8, hidden_size=2048, intermediate_size=768),
    "DeepSeek-V3": Shape(num_experts=256, top_k=8, hidden_size=7168, intermediate_size=2048),
    "gpt-oss-120b": Shape(num_experts=128, top_k=4, hidden_size=2880, intermediate_size=2880),
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One set of inputs: hidden [T, H], index int64 [T, K], weights float32 [T, K], home int32 [T]."""

    hidden: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    home: torch.Tensor


def contiguous_tables(
    shape: Shape, num_ranks: int, extra_slots: int, choice: ReplicaChoice, device: torch.device
) -> RoutingTables:
    """Experts in order on the ranks; each rank also holds the first `extra_slots` experts of the next rank."""
    E, R = shape.num_experts, num_ranks
    first = np.arange(R + 1) * E // R
    holds = (np.arange(E) >= first[:-1, None]) & (np.arange(E) < first[1:, None])
    for rank in range(R if R > 1 else 0):
        start = first[(rank + 1) % R]
        holds[rank, start : start + extra_slots] = True
    slot_on_rank = np.where(holds, np.cumsum(holds).reshape(R, E) - 1, -1)
    owner = np.searchsorted(first, np.arange(E), side="right") - 1
    serving = np.where(holds, np.arange(R)[:, None], owner)
    arrays = {
        "dispatch_slot": slot_on_rank[serving, np.arange(E)],
        "slot_on_rank": slot_on_rank,
        "rank_of_slot": np.nonzero(holds)[0],
        "slot_offsets": np.concatenate([[0], np.cumsum(holds.sum(axis=1))]),
        "node_of_rank": np.zeros(R),
    }
    tensors = {name: torch.tensor(array, dtype=torch.int32, device=device) for name, array in arrays.items()}
    return RoutingTables(**tensors, replica_choice=choice)


def random_batches(
    shape: Shape, num_tokens: int, num_ranks: int, count: int, device: torch.device, seed: int = 0
) -> list[Batch]:
    """`count` batches of bfloat16 tokens with uniform routing; every rank is home to an equal stretch of the tokens."""
    generator = torch.Generator(device).manual_seed(seed)
    home = (torch.arange(num_tokens, device=device) * num_ranks // max(num_tokens, 1)).to(torch.int32)

    def batch() -> Batch:
        score = torch.rand((num_tokens, shape.num_experts), generator=generator, device=device)
        top = score.topk(shape.top_k, dim=1)
        size = (num_tokens, shape.hidden_size)
        hidden = torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)
        return Batch(hidden=hidden, index=top.indices, weights=top.values.softmax(dim=1), home=home)

    return [batch() for _ in range(count)]
