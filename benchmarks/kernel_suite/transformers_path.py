"""What `grouped_mm_experts_forward` of transformers does around its products, step by step, to be timed alone."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class SortedPairs:
    """order, inverse: int64 [T * K]; weights: [T * K, 1] in order; offsets: int32 [E]."""

    order: torch.Tensor
    inverse: torch.Tensor
    weights: torch.Tensor
    offsets: torch.Tensor


def sort_pairs(index: torch.Tensor, weights: torch.Tensor, num_experts: int) -> SortedPairs:
    """Its counterpart of assign and group: index [T, K], weights [T, K]."""
    expert, order = torch.sort(index.reshape(-1))
    expert = expert.int() if expert.is_cuda else expert.float()
    counts = torch.histc(expert, bins=num_experts, min=0, max=num_experts - 1)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0], device=order.device)
    return SortedPairs(
        order=order,
        inverse=inverse,
        weights=weights.reshape(-1)[order].unsqueeze(-1),
        offsets=torch.cumsum(counts, dim=0, dtype=torch.int32),
    )


def permute(hidden: torch.Tensor, pairs: SortedPairs, top_k: int) -> torch.Tensor:
    """[T * K, H] in order of experts."""
    return hidden[pairs.order // top_k]


def unpermute(products: torch.Tensor, pairs: SortedPairs, top_k: int) -> torch.Tensor:
    """[T, H], of [T * K, H] in order of experts."""
    weighted = products * pairs.weights
    return weighted[pairs.inverse].view(-1, top_k, products.shape[1]).sum(dim=1).to(products.dtype)
