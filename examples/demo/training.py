"""Train a mixture-of-experts language model: next-token loss plus a little load balancing, AdamW, cosine schedule."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import Qwen3MoeForCausalLM

from demo import padded_experts
from demo.batches import Windows, draw_batches
from demo.settings import Recipe

# The clock decides only where training lags behind it by this share, so that it changes nothing on other machines.
CLOCK_TOLERANCE = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What training did: the loss of every step in nats per token, how long all of it took, and in which type matrix
    products ran.
    """

    losses: list[float]
    tokens: int
    seconds: float
    stopped_by_time: bool
    matmul_dtype: str


def train(
    model: Qwen3MoeForCausalLM, windows: Windows, recipe: Recipe, matmul_dtype: torch.dtype = torch.float32
) -> TrainingRecord:
    """Train `model` in place; weights stay float32, matrix products run in `matmul_dtype`.

    The result depends on the seed alone, unless the time limit cut training short.
    """
    model.set_experts_implementation(padded_experts.register())
    optimizer = _optimizer(model, recipe)
    batches = draw_batches(windows, recipe.sequences_per_domain, recipe.seed)
    batch_tokens = len(windows) * recipe.sequences_per_domain * recipe.sequence_tokens
    losses: list[float] = []
    start = time.monotonic()
    model.train()
    with _progress_bar(recipe.steps * batch_tokens) as bar:
        while (share := _share_done(len(losses), time.monotonic() - start, recipe)) < 1:
            _set_rate(optimizer, _rate(share, recipe))
            losses.append(_step(model, next(batches), optimizer, recipe, matmul_dtype))
            bar.set_postfix(loss=f"{losses[-1]:.2f}", refresh=False)
            bar.update(batch_tokens)
    model.train(False)
    return TrainingRecord(
        losses=losses,
        tokens=len(losses) * batch_tokens,
        seconds=time.monotonic() - start,
        stopped_by_time=len(losses) < recipe.steps,
        matmul_dtype=str(matmul_dtype).removeprefix("torch."),
    )


def token_losses(model: Qwen3MoeForCausalLM, batch: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """The losses float32 [sequences * (tokens - 1)] of predicting each next token of `batch` int64 [sequences, tokens],
    and each layer's router logits [sequences * tokens, experts]."""
    output = model.model(input_ids=batch, use_cache=False, output_router_logits=True)
    logits = model.lm_head(output.last_hidden_state[:, :-1]).flatten(0, 1)
    return functional.cross_entropy(logits.float(), batch[:, 1:].flatten(), reduction="none"), output.router_logits


def balance_loss(router_logits: Sequence[Tensor], top_k: int) -> Tensor:
    """The load-balancing loss of Switch Transformers (arXiv 2101.03961, equation 4), its mean over layers.

    `E * sum_e share_e * probability_e` is 1 where the whole batch is spread evenly. Taken over the batch, which holds
    every domain, it leaves experts free to specialise in one.
    """
    losses = []
    for logits in router_logits:
        probabilities = logits.float().softmax(dim=-1)
        chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(top_k).indices, 1 / top_k)
        losses.append(logits.shape[1] * (chosen.mean(dim=0) * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def _step(
    model: Qwen3MoeForCausalLM,
    batch: Tensor,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    matmul_dtype: torch.dtype,
) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=matmul_dtype == torch.bfloat16):
        losses, router_logits = token_losses(model, batch)
    loss = losses.mean()
    balance = balance_loss(router_logits, model.config.num_experts_per_tok)
    torch.autograd.backward(loss + recipe.balance_weight * balance)
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _optimizer(model: Qwen3MoeForCausalLM, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    scales = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)


def _share_done(steps_done: int, seconds: float, recipe: Recipe) -> float:
    """How much of training is over: by steps, or on a machine that is clearly too slow for them by the clock."""
    by_steps, by_clock = steps_done / recipe.steps, seconds / recipe.time_limit_seconds
    return by_clock if by_clock > by_steps + CLOCK_TOLERANCE else by_steps


def _rate(share: float, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to `final_rate_share`."""
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    decayed = recipe.final_rate_share + (1 - recipe.final_rate_share) * cosine
    return recipe.learning_rate * decayed * min(1.0, (share + 1 / recipe.steps) / recipe.warmup_share)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _progress_bar(total_tokens: int) -> "tqdm[None]":
    interval = 0.5 if sys.stderr.isatty() else 15.0
    return tqdm(desc="training", total=total_tokens, unit=" tokens", unit_scale=True, mininterval=interval)
