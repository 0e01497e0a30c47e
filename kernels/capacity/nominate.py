"""Nominate in Triton: one program per token looks at all experts at once."""

import torch

from specmoe.kernels.launch.compiler import kernel, power_of_two, tl
from specmoe.kernels.launch.device import device_of
from specmoe.kernels.launch.operator import operator


def _new_candidates(wants: torch.Tensor, *_: object) -> torch.Tensor:
    return wants.new_empty(wants.shape, dtype=torch.int32)


@operator("nominate", _new_candidates)
def nominate_op(
    wants: torch.Tensor, scores: torch.Tensor, taken: torch.Tensor, is_open: torch.Tensor, home_rank: torch.Tensor
) -> torch.Tensor:
    """As `Steps.nominate`."""
    (num_tokens, top_k), num_experts = wants.shape, scores.shape[1]
    candidate = _new_candidates(wants)
    if num_tokens > 0:
        with device_of(scores):
            _nominate[(num_tokens,)](
                wants.to(torch.int8), scores, taken, is_open.to(torch.int8), home_rank, candidate,
                num_experts, TOP_K=top_k, TAKEN=taken.shape[1], E=power_of_two(num_experts),
            )  # fmt: skip
    return candidate


@kernel
def _nominate(
    wants: tl.tensor, scores: tl.tensor, taken: tl.tensor, is_open: tl.tensor, home_rank: tl.tensor,
    candidate: tl.tensor, num_experts: tl.tensor, TOP_K: tl.constexpr, TAKEN: tl.constexpr, E: tl.constexpr,
) -> None:  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    expert_E = tl.arange(0, E)
    exists_E = expert_E < num_experts
    free_E = tl.load(is_open + tl.load(home_rank + token) * num_experts + expert_E, mask=exists_E, other=0) > 0
    for index in range(TAKEN):
        free_E = free_E & (expert_E != tl.load(taken + token * TAKEN + index))
    score_E = tl.load(scores + token * num_experts + expert_E, mask=free_E, other=float("-inf"))
    # NaN is no score either.
    score_E = tl.where(score_E == score_E, score_E, float("-inf"))
    for choice in range(TOP_K):
        best = -1
        if tl.load(wants + token * TOP_K + choice) > 0:
            best_score = tl.max(score_E, axis=0)
            if best_score > float("-inf"):
                best = tl.min(tl.where(score_E == best_score, expert_E, E), axis=0)
                score_E = tl.where(expert_E == best, float("-inf"), score_E)
        tl.store(candidate + token * TOP_K + choice, best)
