"""How a model chooses its next tokens, as transformers' `generate` would prepare it for one prompt.

`generate` does what a model's generation settings ask for (penalties, suppressed tokens, end tokens) and hands all of
it to the decoding method that it is given: here one that decodes nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class GreedySettings:
    """processors: change the scores of one prompt (input_ids [1, S], scores [1, V]); empty where the model's settings
    ask for none. cache: an empty one. arguments: others of the model's forward."""

    processors: Any
    cache: Any
    arguments: dict[str, Any]


def greedy_arguments(model: Any, max_new_tokens: int) -> dict[str, Any]:
    """The arguments with which `generate` decodes greedily."""
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "num_beams": 1,
        "pad_token_id": min(end_ids(model), default=0),
    }


def greedy_settings(model: Any, prompt: list[int], max_new_tokens: int) -> GreedySettings:
    """Those for one prompt; nothing is run."""
    input_ids = torch.tensor([prompt], device=model.device)
    settings = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        custom_generate=_hand_over,
        **greedy_arguments(model, max_new_tokens),
    )
    assert isinstance(settings, GreedySettings)
    return settings


def end_ids(model: Any) -> set[int]:
    """The token ids that end a request."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _hand_over(
    _model: Any,
    _input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    past_key_values: Any = None,
    use_cache: bool = True,
    logits_to_keep: int | None = None,
    **_others: Any,
) -> GreedySettings:
    return GreedySettings(
        processors=logits_processor,
        cache=past_key_values if use_cache else None,
        arguments={} if logits_to_keep is None else {"logits_to_keep": logits_to_keep},
    )
