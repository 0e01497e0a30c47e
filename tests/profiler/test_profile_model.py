"""`specmoe.profile` against the models' own routers, whatever the batches, and what it refuses."""

import json
from typing import Any

import numpy as np
import pytest

import specmoe
from specmoe.errors import ArtifactError, CheckpointError, UsageError
from specmoe.profiler import experts_interface
from specmoe.profiler import load_model as load_model_module
from specmoe.profiler.experts_interface import RoutingObserver
from specmoe.profiler.routed_layers import find_routed_layers
from specmoe.profiler.routing_profile import RoutingProfile

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4", "longcat_flash"]


def chunks(texts: list[str], length: int) -> list[list[int]]:
    """Token ids of `texts`, cut as the profiler cuts them; the tiny tokenizer's ids are ranks of byte symbols."""
    from tokenizers import pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    sequences = []
    for text in texts:
        ids = [1 + symbols.index(symbol) for word, _ in split.pre_tokenize_str(text) for symbol in word]
        sequences += [ids[start : start + length] for start in range(0, len(ids), length)]
    return sequences


@pytest.mark.parametrize("family", FAMILIES)
def test_the_profile_is_what_the_models_own_routers_decide(
    family, tiny_model, jsonl, texts, routes_by_the_router
) -> None:
    model = tiny_model(family)
    sequences = chunks(texts, 64)
    routes = routes_by_the_router(model.folder, sequences)
    assert len(routes) == len(model.layer_ids)
    profile = specmoe.profile(model.folder, jsonl, batch_tokens=256)

    assert profile.layer_ids.tolist() == model.layer_ids
    assert profile.num_tokens == sum(map(len, sequences))
    assert profile.vocab_size == 300
    sample = profile.sample
    assert sample is not None
    assert sample.token_ids.tolist() == [token for sequence in sequences for token in sequence]
    assert sample.request_ids.tolist() == [index for index, ids in enumerate(sequences) for _ in ids]
    assert sample.positions.tolist() == [position for ids in sequences for position in range(len(ids))]
    one_hot = np.zeros((*sample.expert_ids.shape[:2], profile.num_logical_experts), dtype=np.int64)
    for row, indices in enumerate(routes):
        assert np.array_equal(np.sort(sample.expert_ids[:, row]), np.sort(indices))
        np.put_along_axis(one_hot[:, row], indices, 1, axis=1)
    assert np.array_equal(profile.expert_counts, one_hot.sum(axis=0))
    assert np.array_equal(profile.coactivation_counts, np.einsum("tli,tlj->lij", one_hot, one_hot))
    assert np.array_equal(profile.transition_counts, np.einsum("tli,tlj->lij", one_hot[:, :-1], one_hot[:, 1:]))
    assert profile.token_counts is not None
    assert profile.token_counts.counts.sum() == profile.expert_counts.sum()


def test_step_37_has_an_experts_module_of_its_own() -> None:
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    text = SHAPE | {
        "head_dim": 8,
        "n_routed_experts": 8,
        "moe_num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
    }
    text |= {"intermediate_size": 40, "share_expert_dim": 16, "sliding_window": 8}
    text |= {"mlp_layer_types": ["dense", "sparse", "sparse"]}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    config = CONFIG_MAPPING["step3p7"](text_config=text, vision_config=vision)
    model = AutoModelForImageTextToText.from_config(config).eval()
    routed = find_routed_layers(model, "m", torch.device("cpu"))
    chosen: list[torch.Tensor] = []
    for experts in routed.modules:
        router = model.get_submodule(f"{experts.path.rpartition('.')[0]}.gate")
        router.register_forward_hook(lambda _module, _args, output: chosen.append(output[2]))
    with RoutingObserver(routed.modules) as observer, torch.inference_mode():
        model(input_ids=torch.arange(40).reshape(2, 20))
        seen = observer.take(40)
    assert (routed.num_logical_experts, routed.top_k) == (8, 3)
    assert torch.equal(seen.expert_ids, torch.stack(chosen, dim=1))


def test_more_experts_than_fit_a_byte_keep_their_ids(model_of_many_experts, jsonl, texts, routes_by_the_router) -> None:
    [indices] = routes_by_the_router(model_of_many_experts, chunks(texts, 64))
    assert indices.max() > 255
    sample = specmoe.profile(model_of_many_experts, jsonl).sample
    assert sample is not None
    assert sample.expert_ids.dtype == np.uint16
    assert np.array_equal(np.sort(sample.expert_ids[:, 0]), np.sort(indices))


def test_gate_weights_are_the_ones_that_the_experts_get(tiny_model, jsonl) -> None:
    profile = specmoe.profile(tiny_model("gpt_oss").folder, jsonl)
    assert profile.sample is not None
    weights = profile.sample.gate_weights.astype(np.float32)
    # This family's weights are a softmax over the chosen experts, best first.
    assert np.allclose(weights.sum(axis=-1), 1, atol=2e-3)
    assert np.all(np.diff(weights, axis=-1) <= 1e-3)


@pytest.mark.parametrize(("family", "groups"), [("olmoe", 1), ("deepseek_v3", None)])
def test_the_routers_expert_groups_are_noted(family, groups, tiny_model, jsonl) -> None:
    from transformers import AutoConfig

    folder = tiny_model(family).folder
    expected = groups or AutoConfig.from_pretrained(folder).n_group
    assert specmoe.profile(folder, jsonl, max_tokens=50).num_expert_groups == expected


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_padding_is_never_counted(family, tiny_model, jsonl) -> None:
    folder = tiny_model(family).folder
    alone = specmoe.profile(folder, jsonl, batch_tokens=1)
    together = specmoe.profile(folder, jsonl, batch_tokens=4096)
    assert alone.num_tokens == together.num_tokens
    assert_same_routing(alone, together)


def assert_same_routing(first: RoutingProfile, second: RoutingProfile) -> None:
    for name in ("expert_counts", "coactivation_counts", "transition_counts"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    for name in ("token_ids", "row_offsets", "expert_ids", "counts"):
        assert np.array_equal(getattr(first.token_counts, name), getattr(second.token_counts, name)), name
    for name in ("expert_ids", "token_ids", "request_ids", "positions", "domain_ids"):
        assert np.array_equal(getattr(first.sample, name), getattr(second.sample, name)), name


def test_a_small_sample_holds_whole_requests_and_the_counts_stay_exact(tiny_model, jsonl) -> None:
    folder = tiny_model("olmoe").folder
    full = specmoe.profile(folder, jsonl)
    small = specmoe.profile(folder, jsonl, sample_tokens=100, batch_tokens=64, seed=3)
    other = specmoe.profile(folder, jsonl, sample_tokens=100, seed=4)
    assert np.array_equal(full.coactivation_counts, small.coactivation_counts)
    assert full.sample is not None
    assert small.sample is not None
    assert other.sample is not None
    assert 0 < small.sample.num_tokens <= 100
    requests = np.unique(small.sample.request_ids)
    assert requests.tolist() != np.unique(other.sample.request_ids).tolist()
    whole = np.isin(full.sample.request_ids, requests)
    for name in ("expert_ids", "token_ids", "request_ids", "positions", "gate_weights"):
        assert np.allclose(getattr(small.sample, name), getattr(full.sample, name)[whole], atol=1e-3), name


def test_every_file_is_a_domain_or_every_value_of_the_domain_column(tiny_model, tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one", "kind": "x"}\n{"text": "two", "kind": "y"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "three", "kind": "x"}\n')
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    folder = tiny_model("olmoe").folder
    by_file = specmoe.profile(folder, files).sample
    by_column = specmoe.profile(folder, files, domain_column="kind").sample
    assert by_file is not None
    assert by_column is not None
    assert by_file.domain_ids.tolist() == [0] * 6 + [1] * 5
    assert by_column.domain_ids.tolist() == [0] * 3 + [1] * 3 + [0] * 5


def test_max_tokens_stops_the_run(tiny_model, jsonl) -> None:
    assert specmoe.profile(tiny_model("olmoe").folder, jsonl, max_tokens=50).num_tokens == 50


def test_a_profile_survives_its_file_and_names_its_model(tiny_model, jsonl, tmp_path) -> None:
    from specmoe.checkpoint import open_checkpoint

    folder = tiny_model("olmoe").folder
    profile = specmoe.profile(folder, jsonl, dtype="bfloat16")
    profile.save(tmp_path / "profile")
    assert RoutingProfile.load(tmp_path / "profile").fingerprint == profile.fingerprint
    assert profile.model_fingerprint == open_checkpoint(folder).fingerprint


def test_a_dense_model_is_refused_before_its_weights_are_read(editable_model, jsonl) -> None:
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4).save_pretrained(
        editable_model
    )
    with pytest.raises(CheckpointError, match="has no mixture-of-experts layers"):
        specmoe.profile(editable_model, jsonl)


def test_experts_that_do_not_use_the_common_interface_are_refused(editable_model, jsonl, monkeypatch) -> None:
    from transformers import Llama4TextConfig

    monkeypatch.setattr(experts_interface, "LLAMA4_EXPERTS", "none of them")

    Llama4TextConfig(
        hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_local_experts=4
    ).save_pretrained(editable_model)
    with pytest.raises(CheckpointError, match="experts interface"):
        specmoe.profile(editable_model, jsonl)


def test_a_token_that_may_choose_fewer_experts_is_refused(editable_model, jsonl) -> None:
    from transformers import LongcatFlashConfig

    LongcatFlashConfig(
        hidden_size=32, ffn_hidden_size=40, num_layers=2, num_attention_heads=4, n_routed_experts=4, zero_expert_num=2
    ).save_pretrained(editable_model)
    with pytest.raises(CheckpointError, match="may choose experts that compute nothing"):
        specmoe.profile(editable_model, jsonl)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(editable_model, jsonl) -> None:
    from safetensors.torch import load_file, save_file

    weights = editable_model / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.gate.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*layers\.1\.mlp\.gate"):
        specmoe.profile(editable_model, jsonl)


def test_a_model_without_a_tokenizer_is_refused(editable_model, jsonl) -> None:
    for file in editable_model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        specmoe.profile(editable_model, jsonl)


def test_a_tokenizer_of_another_model_is_refused(editable_model, jsonl) -> None:
    tokenizer = json.loads((editable_model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = {symbol: number + 200 for symbol, number in tokenizer["model"]["vocab"].items()}
    (editable_model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="do not belong together"):
        specmoe.profile(editable_model, jsonl)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 65}, "the model takes at most 64"),
        ({"max_length": 0}, "max_length is 0"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"sample_tokens": 0}, "sample_tokens is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"device": "cuda:99"}, "the device cuda:99 cannot be used"),
        ({"generate": 0}, "generate is 0"),
        ({"generate": 64}, "generate is 64, and the model takes at most 64 tokens in all"),
        ({"generate": 60, "max_length": 5}, "max_length is 5, the model takes at most 64, 60 of them generated"),
        ({"weights": [1.0, 2.0]}, "2 weights for 1 data files"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map both say"),
        ({"offload_folder": "here"}, "give device_map with it"),
    ],
    ids=lambda value: str(value),
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str, tiny_model, jsonl) -> None:
    with pytest.raises(UsageError, match=message):
        specmoe.profile(tiny_model("olmoe").folder, jsonl, **arguments)


@pytest.mark.parametrize("arguments", [{"max_length": 65}, {"weights": [1.0, 2.0]}, {"dtype": "int8"}], ids=str)
def test_a_wrong_argument_is_named_before_the_weights_are_read(arguments, tiny_model, jsonl, monkeypatch) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(load_model_module, "_load", read)
    with pytest.raises(UsageError):
        specmoe.profile(tiny_model("olmoe").folder, jsonl, **arguments)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, jsonl) -> None:
    with pytest.raises(CheckpointError, match="not a Hugging Face checkpoint"):
        specmoe.profile(tmp_path, jsonl)


def test_a_name_that_the_hub_does_not_know_is_refused(jsonl, monkeypatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="neither a folder here nor a model"):
        specmoe.profile("nobody/nothing", jsonl)


def test_chat_messages_need_a_template(editable_model, tmp_path, write_tokenizer) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    with pytest.raises(UsageError, match="no chat template"):
        specmoe.profile(editable_model, chat)
    write_tokenizer(editable_model, chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}")
    assert specmoe.profile(editable_model, chat).num_tokens == len("user: hi;")


@pytest.mark.parametrize("generate", [None, 4])
def test_a_model_spread_over_cpu_and_disk_gives_the_same_profile(generate, tiny_model, jsonl, tmp_path) -> None:
    folder = tiny_model("olmoe").folder
    prefix = "model." if generate else ""
    modules = ["embed_tokens", "rotary_emb", "norm", "layers.0", "layers.1", "layers.2"]
    device_map = {prefix + name: "disk" if name in ("layers.1", "layers.2") else "cpu" for name in modules}
    device_map |= {"lm_head": "cpu"} if generate else {}
    spread = specmoe.profile(
        folder, jsonl, device_map=device_map, offload_folder=tmp_path / "weights", generate=generate, max_tokens=150
    )
    assert any((tmp_path / "weights").iterdir())
    assert spread.fingerprint == specmoe.profile(folder, jsonl, generate=generate, max_tokens=150).fingerprint


def test_a_device_map_without_accelerate_says_what_to_install(tiny_model, jsonl, monkeypatch) -> None:
    monkeypatch.setattr(load_model_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs accelerate; install it with: pip install 'specmoe\[large\]'"):
        specmoe.profile(tiny_model("olmoe").folder, jsonl, device_map="auto")


def test_weights_mix_files_and_each_file_is_counted(tiny_model, tmp_path) -> None:
    (tmp_path / "a.txt").write_text("abcd" * 100)
    (tmp_path / "b.txt").write_text("efgh" * 100)
    profile = specmoe.profile(
        tiny_model("olmoe").folder, [tmp_path / "a.txt", tmp_path / "b.txt"], weights=[3, 1], max_length=10
    )
    assert profile.domains is not None
    assert profile.domains.names == (str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert profile.domains.num_tokens.tolist() == [400, 140]


def test_an_empty_corpus_is_refused(tiny_model, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ArtifactError, match="is empty"):
        specmoe.profile(tiny_model("olmoe").folder, tmp_path / "empty.txt")
