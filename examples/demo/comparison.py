"""Compare what the compiled checkpoint said on four processes with what the unmodified model says on one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

RELATIVE_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """largest_difference is over all logits after every prompt, largest_logit the scale to see it by."""

    largest_difference: float
    largest_logit: float
    equal_tokens: int
    all_tokens: int
    equal_texts: int
    all_texts: int

    @property
    def identical(self) -> bool:
        """Whether every token and text is the same and the logits are, but for the rounding of float32 sums."""
        close = self.largest_difference <= RELATIVE_TOLERANCE * self.largest_logit
        return close and self.equal_tokens == self.all_tokens and self.equal_texts == self.all_texts


@torch.inference_mode()
def compare(model_folder: Path, generated: str, logits_file: Path, max_new_tokens: int) -> Comparison:
    """`generated` is what `specmoe generate --json` printed, `logits_file` what its `--logits` wrote: [prompts, V]."""
    completions: Sequence[Mapping[str, Any]] = json.loads(generated)["completions"]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    prompts = [tokenizer(item["prompt"], return_tensors="pt") for item in completions]
    expected_logits = torch.stack([model(**prompt).logits[0, -1] for prompt in prompts])
    expected = [_continue(model, prompt, max_new_tokens) for prompt in prompts]
    found = [item["token_ids"] for item in completions]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    return Comparison(
        largest_difference=(load_file(logits_file)["logits"] - expected_logits).abs().max().item(),
        largest_logit=expected_logits.abs().max().item(),
        equal_tokens=sum(_num_equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)),
        all_tokens=sum(max(len(ours), len(theirs)) for ours, theirs in zip(found, expected, strict=True)),
        equal_texts=sum(item["text"] == text for item, text in zip(completions, texts, strict=True)),
        all_texts=len(texts),
    )


def _continue(model: Any, prompt: Mapping[str, torch.Tensor], max_new_tokens: int) -> list[int]:
    output = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    new: list[int] = output[0, prompt["input_ids"].shape[1] :].tolist()
    return new


def _num_equal(ours: Sequence[int], theirs: Sequence[int]) -> int:
    return sum(mine == other for mine, other in zip(ours, theirs, strict=False))
