import json
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.batches import pack
from demo.learned import measure
from demo.model import new_model
from demo.settings import Recipe
from demo.training import balance_loss, train


def retrain(micro_model: Any, recipe: Recipe, matmul_dtype: torch.dtype = torch.float32) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(micro_model.folder)
    model = new_model(micro_model.settings.shape, end_of_text=0, seed=recipe.seed)
    windows = pack(micro_model.corpus["train"], tokenizer, recipe.sequence_tokens)
    return model, train(model, windows, recipe, matmul_dtype)


def test_twenty_steps_lower_the_loss(micro_model: Any) -> None:
    losses = micro_model.made.training.losses
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.3


def test_the_saved_model_reloads_with_equal_logits(micro_model: Any) -> None:
    # Processors differ in the type that is fastest, and the model was trained in this one's.
    matmul_dtype = getattr(torch, micro_model.made.training.matmul_dtype)
    trained, _ = retrain(micro_model, micro_model.settings.recipe, matmul_dtype)
    reloaded = AutoModelForCausalLM.from_pretrained(micro_model.folder)
    tokens = torch.arange(60).view(2, 30)
    with torch.inference_mode():
        torch.testing.assert_close(reloaded(tokens).logits, trained(tokens).logits, rtol=0, atol=1e-6)


def test_the_checkpoint_is_an_ordinary_one_in_several_files(micro_model: Any) -> None:
    config = json.loads((micro_model.folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3MoeForCausalLM"]
    assert "padded" not in json.dumps(config)
    assert len(list(micro_model.folder.glob("model-*.safetensors"))) >= 3
    tokenizer = AutoTokenizer.from_pretrained(micro_model.folder)
    for text in ("def f(x):\n\treturn  x", "Ünïcödé 漢字 🎉\x00", " leading and trailing "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_same_seed_trains_the_same_model(micro_model: Any) -> None:
    short = replace(micro_model.settings.recipe, steps=4)
    _, first = retrain(micro_model, short)
    _, second = retrain(micro_model, short)
    _, other = retrain(micro_model, replace(short, seed=1))
    assert first.losses == second.losses != other.losses


def test_bfloat16_products_train_alike(micro_model: Any) -> None:
    short = replace(micro_model.settings.recipe, steps=8)
    _, plain = retrain(micro_model, short)
    model, half = retrain(micro_model, short, torch.bfloat16)
    assert plain.losses != half.losses
    assert all(abs(a - b) < 0.03 for a, b in zip(plain.losses, half.losses, strict=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_slow_machine_stops_at_the_time_limit(micro_model: Any) -> None:
    _, record = retrain(micro_model, replace(micro_model.settings.recipe, steps=100_000, time_limit_seconds=0.3))
    assert record.stopped_by_time
    assert 0 < len(record.losses) < 1000


def test_even_routing_has_a_balance_loss_of_one_and_a_hot_expert_more() -> None:
    even = torch.eye(8).repeat(4, 1) * 10
    hot = torch.zeros(32, 8)
    hot[:, 0] = 10
    assert abs(balance_loss([even], top_k=1).item() - 1) < 1e-3
    assert balance_loss([hot], top_k=1).item() > 7


def test_the_measure_of_learning_is_right_for_a_model_that_knows_nothing(micro_model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(micro_model.folder)
    model = new_model(micro_model.settings.shape, end_of_text=0, seed=0)
    torch.nn.init.zeros_(model.model.norm.weight)
    learned = measure(model, tokenizer, micro_model.corpus["heldout"], 64)
    # All logits are zero, so every token costs log(vocabulary).
    assert abs(learned.heldout_loss - torch.tensor(384.0).log().item()) < 1e-4
    assert learned.unigram_entropy < learned.heldout_loss
    assert not learned.has_learned
    assert set(learned.loss_by_domain) == {"docstrings", "manual", "unicode_names"}
    assert all(information >= 0 for information in learned.domain_information)
