"""A list of prompts on one process: of any lengths, ending when they end, each answered as if it were alone."""

from functools import partial

import pytest
import torch

import specmoe
import specmoe.runtime.serve as serve
from specmoe.errors import UsageError
from specmoe.runtime.capacity import CapacityPolicy
from specmoe.runtime.serve import MAX_READ_TOKENS, serve_prompts
from specmoe.runtime.static_decode import StaticDecode

pytestmark = pytest.mark.usefixtures("quiet_transformers")

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4", "longcat_flash"]
# Longer than the windows and chunks of attention, which are 16, and of a single token.
LENGTHS = (3, 90, 1, 17, 6, 1, 40, 12)
# So many that answers end after one token, and after some, and not at all.
ENDS = list(range(3, 16))
NEW_TOKENS = 9


def prompts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(16, 96, (length,), generator=generator).tolist() for length in lengths]


def answers_alone(made, asked, **options):
    """The unmodified model's token ids and first logits for each prompt by itself."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made.source, experts_implementation="eager")
    answers = []
    for prompt in asked:
        ids = torch.tensor([prompt])
        greedy = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": ENDS}
        new = model.generate(ids, attention_mask=torch.ones_like(ids), **greedy, **options)[0, len(prompt) :]
        with torch.no_grad():
            answers.append((new.tolist(), model(ids).logits[0, -1]))
    return answers


def served_by(compiled, asked, max_batch=64, decode=None, **settings):
    model = specmoe.load(compiled, decode=decode)
    model.generation_config.update(eos_token_id=ENDS, **settings)
    return model, serve_prompts(model, asked, NEW_TOKENS, max_batch=max_batch)


def check(served, expected):
    for number, (completion, (token_ids, logits)) in enumerate(zip(served, expected, strict=True)):
        assert completion.token_ids == token_ids, number
        tolerance = 1e-5 * float(logits.abs().max())
        torch.testing.assert_close(completion.first_logits, logits, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("choice", ["cover", "tp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_different_lengths_are_answered_as_alone(compiled_model, family, choice):
    made = compiled_model(family)
    expected = answers_alone(made, prompts())
    lengths = {len(token_ids) for token_ids, _ in expected}
    assert min(lengths) < NEW_TOKENS
    assert len(lengths) > 1
    # All at once, and others that join what is left of three.
    for max_batch in (64, 3):
        model, served = served_by(made.compiled[choice], prompts(), max_batch)
        check(served, expected)
        # The last token of an answer is not read any more.
        read = sum(len(done.prompt_token_ids) + len(done.token_ids) - 1 for done in served)
        assert {layer.tokens for layer in model.specmoe.counters()} == {read}, "neither padding nor who has ended"


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_what_the_models_settings_ask_for_is_done_to_each_prompt_by_itself(compiled_model, family):
    made = compiled_model(family)
    asked = {"repetition_penalty": 1.7, "min_new_tokens": 4, "suppress_tokens": [20, 21, 22]}
    expected = answers_alone(made, prompts(), **asked)
    assert expected != answers_alone(made, prompts())
    _, served = served_by(made.compiled["cover"], prompts(), 3, **asked)
    check(served, expected)


def test_static_decode_serves_them_too(compiled_model):
    made = compiled_model("deepseek_v3")
    model, served = served_by(made.compiled["cover"], prompts(), decode=StaticDecode(max_tokens=8))
    check(served, answers_alone(made, prompts()))
    assert model.specmoe.static.layers_run > 0


def test_a_model_whose_cache_is_not_by_token_is_served_prompts_of_one_length_together(compiled_model, monkeypatch):
    made = compiled_model("qwen3_moe")
    monkeypatch.setattr(serve, "has_rows_of_tokens", lambda _cache: False)
    asked = prompts((4, 4, 9, 4))
    _, served = served_by(made.compiled["cover"], asked)
    check(served, answers_alone(made, asked))


@pytest.fixture
def passes(compiled_model):
    """`passes(lengths, max_batch)`: the shapes of the batches that a model ran for prompts that all end late."""

    def run(lengths, max_batch):
        model = specmoe.load(compiled_model("mixtral").compiled["cover"])
        model.generation_config.eos_token_id = None
        shapes = []
        model.register_forward_pre_hook(
            lambda _module, _args, kwargs: shapes.append(
                (*kwargs["input_ids"].shape, kwargs["attention_mask"].shape[1])
            ),
            with_kwargs=True,
        )
        serve_prompts(model, prompts(lengths), 3, max_batch=max_batch)
        return shapes

    return run


def test_all_lengths_are_read_and_decoded_in_one_batch(passes):
    assert passes((5, 1, 9), 64) == [(3, 9, 9), (3, 1, 10), (3, 1, 11)]


def test_at_most_max_batch_prompts_run_and_the_longest_first(passes):
    assert passes((5, 1, 9), 2) == [(2, 9, 9), (2, 1, 10), (2, 1, 11), (1, 1, 1), (1, 1, 2), (1, 1, 3)]


def test_what_the_longest_left_behind_is_forgotten(compiled_model):
    """The cache is as wide as the longest request that still runs."""
    made = compiled_model("gpt_oss")
    model = specmoe.load(made.compiled["cover"])
    expected = answers_alone(made, prompts())
    model.generation_config.eos_token_id = ENDS
    widths = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: widths.append(kwargs["attention_mask"]), with_kwargs=True
    )
    check(serve_prompts(model, prompts(), NEW_TOKENS, max_batch=2), expected)
    assert all(bool(mask[:, 0].any()) for mask in widths), "no pass has a column of padding alone"


def test_a_pass_reads_no_more_than_its_share_and_a_longer_prompt_alone(passes, monkeypatch):
    assert MAX_READ_TOKENS > 1000
    monkeypatch.setattr(serve, "MAX_READ_TOKENS", 20)
    shapes = passes((30, 9, 8, 7, 2), 64)
    assert [shape[:2] for shape in shapes] == [(1, 30), (2, 9), (2, 7), (5, 1), (5, 1)]


def test_a_request_keeps_the_home_rank_that_the_plan_gives_it(compiled_model):
    model = specmoe.load(compiled_model("olmoe").compiled["cover"])
    model.generation_config.eos_token_id = ENDS
    homes = []
    model.model.layers[0].mlp.experts.register_forward_hook(
        lambda module, args, _out: homes.append(module.specmoe_layer.homes.of_tokens(0, args[0].shape[0]))
    )
    served = serve_prompts(model, prompts(), NEW_TOKENS, max_batch=3)
    tokens_of_rank = [0] * 4
    for rank, done in zip(model.specmoe.home_ranks(prompts()), served, strict=True):
        tokens_of_rank[rank] += len(done.prompt_token_ids) + len(done.token_ids) - 1
    assert torch.cat(homes).bincount(minlength=4).tolist() == tokens_of_rank


def test_completed_prompts_are_told_as_they_end(compiled_model):
    model = specmoe.load(compiled_model("olmoe").compiled["cover"])
    told = []
    serve_prompts(model, prompts((2, 5, 3)), 2, max_batch=1, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_capacity_bounds_what_is_read_together(compiled_model):
    model = specmoe.load(compiled_model("olmoe").compiled["static"], capacity=CapacityPolicy(0.5))
    serve_prompts(model, prompts(), 2)
    assert all(layer.dropped_pairs > 0 for layer in model.specmoe.counters())


MISTAKES = {
    "an empty prompt": (partial(serve_prompts, prompts=[[3], []], max_new_tokens=1), "prompt 1 has no tokens"),
    "no new tokens": (partial(serve_prompts, prompts=[[3]], max_new_tokens=0), "max_new_tokens is 0"),
    "no batch": (partial(serve_prompts, prompts=[[3]], max_new_tokens=1, max_batch=0), "max_batch is 0"),
}


@pytest.mark.parametrize(("ask", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_what_cannot_be_served_is_refused(ask, message):
    with pytest.raises(UsageError, match=message):
        ask(torch.nn.Module())
