"""What the unmodified model does with the prompts: the routing to predict bytes from, the output to compare with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from replay import Replay, routers_of
from workload import Workload


def unmodified_model(checkpoint: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()


@torch.inference_mode()
def generated_workload(checkpoint: Path, prompts: torch.Tensor, new_tokens: int) -> Workload:
    """The model's own greedy answers to `prompts` (int64 [N, P]), and the experts that it uses on the way."""
    model = unmodified_model(checkpoint)
    seen: list[list[torch.Tensor]] = [[] for _ in routers_of(model)]
    for router, own in zip(routers_of(model), seen, strict=True):
        router.register_forward_hook(lambda _module, _args, output, own=own: own.append(output[2]))
    columns, logits, cache = [prompts], [], None
    for _ in range(new_tokens):
        output = model(columns[-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        logits.append(output.logits[:, -1].float())
        columns.append(logits[-1].argmax(dim=-1)[:, None])
    return Workload(
        tokens=torch.cat(columns, dim=1),
        expert_ids=_of_requests(seen, len(prompts)),
        first_logits=logits[0],
        prompt_tokens=prompts.shape[1],
        replay=False,
    )


@torch.inference_mode()
def replayed_workload(checkpoint: Path, tokens: torch.Tensor, expert_ids: torch.Tensor, prompt_tokens: int) -> Workload:
    """A trace on a model of random weights; tokens: int64 [N, P + D], expert_ids: uint8 [N, P + D - 1, L, K]."""
    model = unmodified_model(checkpoint)
    Replay(routers_of(model)).begin_forward(expert_ids[:, :prompt_tokens])
    logits = model(tokens[:, :prompt_tokens], logits_to_keep=1).logits[:, -1].float()
    return Workload(tokens=tokens, expert_ids=expert_ids, first_logits=logits, prompt_tokens=prompt_tokens, replay=True)


def _of_requests(seen: Sequence[Sequence[torch.Tensor]], num_requests: int) -> torch.Tensor:
    """uint8 [N, S, L, K] of the experts of every layer and pass, each int64 [N * columns, K]."""
    layers = [torch.cat([index.view(num_requests, -1, index.shape[1]) for index in own], dim=1) for own in seen]
    return torch.stack(layers, dim=2).to(torch.uint8)


def stated_config(checkpoint: Path) -> Any:
    """The checkpoint's configuration, its `dtype` a torch type."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    if isinstance(config.dtype, str):
        config.dtype = getattr(torch, config.dtype)
    return config
