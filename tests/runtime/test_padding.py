"""Padded batches: what fills a row up to the longest one's length reaches no expert and changes no answer."""

import pytest
import torch

import specmoe
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.static_decode import StaticDecode
from specmoe.runtime.token_places import TokenPlaces, tokens_of_mask

pytestmark = pytest.mark.usefixtures("quiet_transformers")

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4", "longcat_flash"]
LENGTHS = (1, 21, 6)


def prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 96, (1, length), generator=generator) for length in LENGTHS]


def padded(rows):
    """The rows behind zeros, and their attention mask and positions."""
    width = max(row.shape[1] for row in rows)
    mask = torch.cat([torch.arange(width)[None] >= width - row.shape[1] for row in rows]).long()
    ids = torch.cat([torch.nn.functional.pad(row, (width - row.shape[1], 0)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


@pytest.mark.parametrize("choice", ["static", "cover", "tp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_tokens_are_counted_and_each_prompt_is_answered_as_alone(compiled_model, family, choice):
    from transformers import AutoModelForCausalLM

    made, rows = compiled_model(family), prompts()
    original = AutoModelForCausalLM.from_pretrained(made.source, experts_implementation="eager")
    model = specmoe.load(made.compiled[choice])
    with torch.no_grad():
        logits = model(**padded(rows)).logits[:, -1]
        expected = torch.cat([original(row).logits[:, -1] for row in rows])
    assert {layer.tokens for layer in model.specmoe.counters()} == {sum(LENGTHS)}
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("overflow", ["drop", "reroute"])
@pytest.mark.parametrize("choice", ["static", "tp"])
def test_padding_takes_no_part_of_a_capacity(compiled_model, choice, overflow):
    made, (_, row, _) = compiled_model("olmoe"), prompts()
    policy = CapacityPolicy(0.7, overflow=overflow, priority=lambda ids: (ids % 2).float())
    model = specmoe.load(made.compiled[choice], capacity=policy)
    batch = padded([row, torch.zeros((1, 33), dtype=torch.int64)])
    with torch.no_grad():
        alone = model(row).logits[0, -1]
        counted = model.specmoe.counters()
        model.specmoe.reset_counters()
        behind_padding = model(**{name: values[:1] for name, values in batch.items()}).logits[0, -1]
    assert model.specmoe.counters() == counted
    assert all(layer.dropped_pairs > 0 for layer in counted)
    torch.testing.assert_close(behind_padding, alone, rtol=1e-5, atol=1e-5)


def test_padding_does_not_decide_where_a_request_goes(compiled_model):
    """Requests go where their own tokens pull them."""
    model, rows = specmoe.load(compiled_model("mixtral").compiled["static"]), prompts()
    homes = []
    model.model.layers[0].mlp.experts.register_forward_hook(
        lambda module, args, _out: homes.append(module.specmoe_layer.homes.of_tokens(0, args[0].shape[0]).tolist())
    )
    with torch.no_grad():
        model(**padded(rows))
    sizes = [homes[0].count(rank) for rank in range(4)]
    assert sorted(sizes) == [0, *sorted(LENGTHS)], "with room for the longest, each on a rank of its own"


def test_padding_needs_no_room_in_fixed_buffers(compiled_model):
    model = specmoe.load(compiled_model("olmoe").compiled["static"], decode=StaticDecode(max_tokens=sum(LENGTHS)))
    with torch.no_grad():
        model(**padded(prompts()))
    assert model.specmoe.static.layers_run == 3


def test_a_batch_of_padding_alone_is_answered(compiled_model):
    model = specmoe.load(compiled_model("olmoe").compiled["static"])
    with torch.no_grad():
        logits = model(torch.zeros((2, 3), dtype=torch.int64), attention_mask=torch.zeros((2, 3))).logits
    assert logits.isfinite().all()
    assert {layer.tokens for layer in model.specmoe.counters()} == {0}


def test_generate_skips_the_padding_of_its_prompts(compiled_model):
    model, batch = specmoe.load(compiled_model("qwen3_moe").compiled["cover"]), padded(prompts())
    model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=4, eos_token_id=None)
    assert {layer.tokens for layer in model.specmoe.counters()} == {sum(LENGTHS) + 3 * len(LENGTHS)}


MASK = torch.tensor([[0, 1, 1], [1, 1, 1]])
NOT_TOLD = {
    "no mask": (None, 3, 0),
    "nothing is masked": (torch.ones(2, 3), 3, 0),
    "one for each pair of positions": (MASK[:, None, None], 3, 0),
    "of the new tokens alone": (MASK, 3, 2),
    "with room for tokens to come": (MASK, 2, 0),
    "by kind of layer": ({"full_attention": MASK}, 3, 0),
}


@pytest.mark.parametrize(("mask", "num_new", "num_cached"), NOT_TOLD.values(), ids=NOT_TOLD.keys())
def test_a_mask_that_does_not_tell_padding_leaves_every_position_a_token(mask, num_new, num_cached):
    assert tokens_of_mask(mask, 2, num_new, num_cached) is None


def test_of_a_longer_mask_the_last_columns_are_the_new_positions():
    assert tokens_of_mask(MASK, 2, 3, 0).tolist() == [[False, True, True], [True, True, True]]
    assert tokens_of_mask(torch.tensor([[1, 1, 0], [0, 1, 1]]), 2, 2, 1).tolist() == [[True, False], [True, True]]


def test_rows_that_are_no_batch_are_all_tokens():
    places = TokenPlaces()
    assert places.among(6) is None
    places.begin_forward(MASK.bool())
    assert places.among(6).tolist() == [1, 2, 3, 4, 5]
    assert places.among(4) is None
    values = torch.arange(6.0)
    assert places.spread(places.only(values), 6).tolist() == [0, 1, 2, 3, 4, 5]
    places.begin_forward(None)
    assert places.among(6) is None
