import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.comparison import compare

PROMPTS = ["def run(", "Return the"]
NEW_TOKENS = 4


@pytest.fixture(scope="module")
def original(micro_model: Any) -> tuple[list[dict[str, Any]], torch.Tensor]:
    """What the original model says: completions as `specmoe generate --json` prints them, and logits [2, V]."""
    tokenizer = AutoTokenizer.from_pretrained(micro_model.folder)
    model = AutoModelForCausalLM.from_pretrained(micro_model.folder)
    completions, logits = [], []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits.append(model(ids).logits[0, -1])
            for _ in range(NEW_TOKENS):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        new = ids[0, -NEW_TOKENS:].tolist()
        completions.append({"prompt": prompt, "text": tokenizer.decode(new), "token_ids": new})
    return completions, torch.stack(logits)


def compared(micro_model: Any, folder: Path, completions: Any, logits: torch.Tensor) -> Any:
    save_file({"logits": logits}, folder / "logits.safetensors")
    printed = json.dumps({"completions": completions})
    return compare(micro_model.folder, printed, folder / "logits.safetensors", NEW_TOKENS)


def test_the_same_output_is_identical(micro_model: Any, original: Any, tmp_path: Path) -> None:
    found = compared(micro_model, tmp_path, *original)
    assert found.identical
    assert (found.equal_tokens, found.all_tokens, found.equal_texts) == (8, 8, 2)


def test_one_other_token_is_seen(micro_model: Any, original: Any, tmp_path: Path) -> None:
    completions, logits = original
    last = completions[-1]
    changed = [*completions[:-1], {**last, "token_ids": [*last["token_ids"][:-1], last["token_ids"][-1] ^ 1]}]
    found = compared(micro_model, tmp_path, changed, logits)
    assert not found.identical
    assert found.equal_tokens == 7


def test_a_missing_token_is_seen(micro_model: Any, original: Any, tmp_path: Path) -> None:
    completions, logits = original
    shorter = [{**item, "token_ids": item["token_ids"][:-1]} for item in completions]
    assert not compared(micro_model, tmp_path, shorter, logits).identical


def test_a_logit_that_is_off_is_seen(micro_model: Any, original: Any, tmp_path: Path) -> None:
    completions, logits = original
    changed = logits.clone()
    changed[1, 7] += 0.01
    found = compared(micro_model, tmp_path, completions, changed)
    assert not found.identical
    assert abs(found.largest_difference - 0.01) < 1e-4
