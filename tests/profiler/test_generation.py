"""Decode routing: of the tokens that the model itself would give, and what its routers choose for them."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

import specmoe


def by_request(sample) -> dict[int, list[int]]:
    """The token ids of each request in a sample."""
    return {
        request: sample.token_ids[sample.request_ids == request].tolist() for request in np.unique(sample.request_ids)
    }


def greedy(folder, prompt: list[int], num_tokens: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), generation_config=config
        )
    return whole[0].tolist()


# gpt_oss has sliding attention, which padding must not shorten; qwen2_moe has a dense layer.
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "deepseek_v3", "qwen2_moe"])
def test_decode_routing_is_what_the_models_own_routers_decide(family, tiny_model, jsonl, routes_by_the_router) -> None:
    folder = tiny_model(family).folder
    profile = specmoe.profile(folder, jsonl, generate=5, max_length=20, batch_tokens=256)
    sample, decode = profile.sample, profile.decode
    assert sample is not None
    assert decode is not None
    requests = by_request(sample)
    assert decode.num_tokens == 5 * len(requests)
    assert profile.num_tokens == sample.num_tokens
    expected_phases = [phase for ids in requests.values() for phase in [0] * (len(ids) - 5) + [1] * 5]
    assert sample.phases.tolist() == expected_phases
    for row, chosen in enumerate(routes_by_the_router(folder, list(requests.values()))):
        np.testing.assert_array_equal(np.sort(sample.expert_ids[:, row]), np.sort(chosen))
    one_hot = np.eye(profile.num_logical_experts, dtype=np.int64)[sample.expert_ids].sum(axis=2)
    np.testing.assert_array_equal(decode.expert_counts, one_hot[sample.phases == 1].sum(axis=0))
    np.testing.assert_array_equal(profile.expert_counts, one_hot.sum(axis=0))
    for number in (0, 7):
        ids = requests[number]
        assert ids == greedy(folder, ids[:-5], 5)


def test_prompts_without_generation_are_routed_alike(tiny_model, jsonl) -> None:
    folder = tiny_model("olmoe").folder
    from specmoe.profiler.phase_of_profile import profile_of_phase

    plain = specmoe.profile(folder, jsonl, max_length=20)
    prefill = profile_of_phase(specmoe.profile(folder, jsonl, max_length=20, generate=3), "prefill")
    np.testing.assert_array_equal(plain.coactivation_counts, prefill.coactivation_counts)
    np.testing.assert_array_equal(plain.sample.expert_ids, prefill.sample.expert_ids)


def test_a_request_ends_before_its_end_of_text_token(tiny_model, jsonl, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("olmoe").folder, folder)
    free = by_request(specmoe.profile(folder, jsonl, generate=6, max_length=20).sample)
    # What most requests would give third ends them now.
    ends = int(np.bincount([ids[-4] for ids in free.values()]).argmax())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [ends, 299]}))
    profile = specmoe.profile(folder, jsonl, generate=6, max_length=20)
    assert profile.decode is not None
    ended = by_request(profile.sample)
    kept = 0
    for request, ids in free.items():
        answer = ids[-6:]
        expected = answer[: answer.index(ends)] if ends in answer else answer
        assert ended[request] == ids[:-6] + expected
        kept += len(expected)
    assert profile.decode.num_tokens == kept < 6 * len(free)


def test_the_models_answers_stand_in_for_those_in_the_data(tiny_model, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "abc", "completion": "defgh"}\n')
    profile = specmoe.profile(tiny_model("olmoe").folder, tmp_path / "a.jsonl", generate=2)
    assert (profile.num_tokens, profile.decode.num_tokens) == (5, 2)
