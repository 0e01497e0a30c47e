"""One process holding all ranks: the same logits and tokens as the unmodified model, and every refusal."""

import hashlib
import importlib
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import specmoe
from specmoe.errors import ArtifactError, CheckpointError, MismatchError, SpecmoeError, UsageError
from specmoe.placement.homes import homes_of
from specmoe.placement.metrics import layer_traffic
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingSample
from specmoe.runtime.serve import serve_prompts
from specmoe.runtime.static_decode import StaticDecode

load_module = importlib.import_module("specmoe.runtime.load")

pytestmark = pytest.mark.usefixtures("quiet_transformers")

FAMILIES = ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4", "longcat_flash"]
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def unmodified(compiled, dtype=torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(compiled.source, dtype=dtype, experts_implementation="eager")


def some_tokens(*shape):
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(7))


def relative_error(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("choice", ["static", "cover", "tp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_the_unmodified_model(compiled_model, family, choice):
    made = compiled_model(family)
    original, model = unmodified(made), specmoe.load(made.compiled[choice])
    assert type(model) is type(original)
    tokens = some_tokens(3, 17)
    with torch.no_grad():
        assert relative_error(model(tokens).logits, original(tokens).logits) < 2e-6
    assert torch.equal(model.generate(tokens, **GREEDY), original.generate(tokens, **GREEDY))


def test_the_head_is_given_rows_in_one_piece(compiled_model):
    """A strided view of each prompt's last position is multiplied row by row, hundreds of times slower in bfloat16."""
    model = specmoe.load(compiled_model("qwen3_moe").compiled["static"])
    is_contiguous = []
    model.lm_head.register_forward_pre_hook(lambda _, args: is_contiguous.append(args[0].is_contiguous()))
    with torch.no_grad():
        model(some_tokens(3, 7), logits_to_keep=1)
    assert is_contiguous == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_static_decode_changes_nothing_and_prefills_go_the_exact_way(compiled_model, family):
    made = compiled_model(family)
    model = specmoe.load(made.compiled["cover"], decode=StaticDecode(max_tokens=8))
    tokens = some_tokens(3, 17)
    assert torch.equal(model.generate(tokens, **GREEDY), unmodified(made).generate(tokens, **GREEDY))
    assert model.specmoe.static.layers_run == 11 * len(model.specmoe.layers), "every step but the first"


def test_static_decode_is_asked_for_by_its_type(compiled_model):
    with pytest.raises(UsageError, match="decode is 'static', a StaticDecode or None"):
        specmoe.load(compiled_model("olmoe").compiled["static"], decode="static")


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_the_unmodified_model_in_bfloat16(compiled_model, family):
    made = compiled_model(family)
    tokens = some_tokens(4, 24)
    with torch.no_grad():
        truth = unmodified(made)(tokens).logits
        theirs = unmodified(made, torch.bfloat16)(tokens).logits.float()
        ours = specmoe.load(made.compiled["cover"], dtype=torch.bfloat16)(tokens).logits.float()
    assert (ours - truth).abs().mean() < 1.15 * (theirs - truth).abs().mean()


def test_a_left_padded_batch_is_answered_as_by_the_unmodified_model(compiled_model):
    made = compiled_model("qwen3_moe")
    tokens, mask = some_tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[0, :4] = 0
    original, model = unmodified(made), specmoe.load(made.compiled["cover"])
    expected = original.generate(tokens, attention_mask=mask, **GREEDY)
    assert torch.equal(model.generate(tokens, attention_mask=mask, **GREEDY), expected)


@pytest.mark.parametrize("name", ["static", "cover", "hot", "tp"])
def test_eight_uneven_ranks_in_one_process_change_nothing(on_eight_ranks, name):
    from transformers import AutoModelForCausalLM

    source, compiled = on_eight_ranks[name]
    original = AutoModelForCausalLM.from_pretrained(source, experts_implementation="eager")
    model = specmoe.load(compiled)
    # More requests than ranks, and a single one: seven ranks have no token of their own.
    for tokens in (some_tokens(10, 9), some_tokens(1, 5)):
        with torch.no_grad():
            assert relative_error(model(tokens).logits, original(tokens).logits) < 2e-6
        assert torch.equal(model.generate(tokens, **GREEDY), original.generate(tokens, **GREEDY))
    if name == "hot":
        assert all(sum(pairs > 0 for pairs in layer.pairs_of_rank) < 8 for layer in model.specmoe.counters())


@pytest.mark.parametrize("choice", ["static", "cover"])
def test_the_counters_agree_with_the_prediction_of_evaluate(compiled_model, choice):
    made = compiled_model("olmoe")
    model, plan = specmoe.load(made.compiled[choice]), made.plans[choice]
    seen = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _module, _args, out: seen.append(out[2].numpy()))
    homes = [2, 0, 3, 3, 1]
    model.specmoe.pin_requests(homes)
    with torch.no_grad():
        model(some_tokens(5, 16))
    sample = RoutingSample(expert_ids=np.stack(seen, axis=1).astype(np.uint8))
    of_token = np.repeat(np.array(homes, dtype=np.int32), 16)
    for row, counted in enumerate(model.specmoe.counters()):
        predicted = layer_traffic(plan, sample, row, of_token)
        assert (counted.tokens, counted.pairs, counted.wire_rows) == (80, 240, 0)
        served = serve_layer(plan, row, sample.expert_ids[:, row], of_token)
        assert counted.pairs_of_rank == tuple(np.bincount(served.flatten(), minlength=4))
        assert counted.remote_copies == predicted.remote_copies
        assert counted.local_pairs == predicted.local_pairs


def test_under_tp_the_counters_agree_with_the_prediction_of_evaluate(compiled_model):
    made = compiled_model("olmoe")
    model, plan = specmoe.load(made.compiled["tp"]), made.plans["tp"]
    seen = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda _module, _args, out: seen.append(out[2].numpy()))
    tokens = some_tokens(5, 17)
    with torch.no_grad():
        model(tokens)
    sample = RoutingSample(
        expert_ids=np.stack(seen, axis=1).astype(np.uint8), token_ids=tokens.flatten().numpy().astype(np.int32)
    )
    homes = homes_of(plan, sample)
    for row, counted in enumerate(model.specmoe.counters()):
        predicted = layer_traffic(plan, sample, row, homes[row])
        assert (counted.remote_copies, counted.local_pairs) == (predicted.remote_copies, predicted.local_pairs)


def test_requests_keep_their_home_ranks_while_they_are_decoded(compiled_model):
    made = compiled_model("olmoe")
    model = specmoe.load(made.compiled["static"])
    homes = []
    model.model.layers[0].mlp.experts.register_forward_hook(
        lambda module, args, _out: homes.append(module.specmoe_layer.homes.of_tokens(0, args[0].shape[0]).tolist())
    )
    model.generate(some_tokens(4, 6), **GREEDY)
    prefill, *steps = homes
    assert sorted(prefill[::6]) == [0, 1, 2, 3], "without affinity equal requests spread evenly"
    assert all(step == prefill[::6] for step in steps)
    assert len(steps) == 11


def test_counters_start_again_after_a_reset(compiled_model):
    model = specmoe.load(compiled_model("olmoe").compiled["static"])
    with torch.no_grad():
        model(some_tokens(1, 4))
    model.specmoe.reset_counters()
    assert {layer.tokens for layer in model.specmoe.counters()} == {0}


def test_pinning_to_a_rank_that_is_elsewhere_is_refused(compiled_model):
    model = specmoe.load(compiled_model("olmoe").compiled["static"])
    with pytest.raises(UsageError, match="rank 4 is not on this process"):
        model.specmoe.pin_requests([0, 4])


def test_weights_of_one_rank_are_mapped_not_copied(compiled_model, random_plan, tmp_path):
    made = compiled_model("olmoe")
    plan = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(1,), top_k=3, layer_ids=(0, 1, 2))
    specmoe.reshard(made.source, plan, tmp_path / "out")
    model = specmoe.load(tmp_path / "out")
    experts = tmp_path / "out" / "experts-rank-00000-of-00001.safetensors"
    storage = model.model.layers[0].mlp.experts.gate_up_proj.untyped_storage()
    assert storage.nbytes() == experts.stat().st_size, "the tensor is a part of the mapped file"


def _flip_byte(path):
    with path.open("r+b") as file:
        file.seek(-5, 2)
        byte = file.read(1)
        file.seek(-5, 2)
        file.write(bytes([byte[0] ^ 1]))


def _swap(first, second):
    spare = first.with_suffix(".spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)


def _edit_manifest(change):
    def edit(folder):
        manifest = json.loads((folder / "specmoe.json").read_text())
        change(manifest)
        (folder / "specmoe.json").write_text(json.dumps(manifest))

    return edit


def _write_listed(folder, name, text):
    """Put a file there and list it as `reshard` would have."""
    (folder / name).write_text(text)
    record = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    _edit_manifest(lambda m: m["files"].update({name: record}))(folder)


def _alter_listed(folder, name):
    _write_listed(folder, name, "text of some length")
    _flip_byte(folder / name)


def _change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    _write_listed(folder, "config.json", json.dumps(config | changes))


def _rename_file(manifest, old, new):
    manifest["files"][new] = manifest["files"].pop(old)


RANK_0, RANK_1 = "experts-rank-00000-of-00004.safetensors", "experts-rank-00001-of-00004.safetensors"
DAMAGE = {
    "no folder": (lambda f: shutil.rmtree(f), ArtifactError, "not a compiled checkpoint"),
    "an altered rank file": (lambda f: _flip_byte(f / RANK_1), ArtifactError, "altered since it was compiled"),
    "a cut rank file": (lambda f: (f / RANK_0).write_bytes(b"short"), ArtifactError, "5 bytes, the manifest says"),
    "a missing rank file": (lambda f: (f / RANK_0).unlink(), ArtifactError, "is missing"),
    "an altered config": (lambda f: _flip_byte(f / "config.json"), ArtifactError, "altered since it was compiled"),
    "a config that is not listed": (
        _edit_manifest(lambda m: m["files"].pop("config.json")),
        ArtifactError,
        "the manifest does not list config.json",
    ),
    "a file that is not listed": (
        lambda f: (f / "added.jinja").write_text("{}"),
        ArtifactError,
        "holds added.jinja, which its manifest does not list",
    ),
    "a generation config that is not listed": (
        _edit_manifest(lambda m: m["files"].pop("generation_config.json")),
        ArtifactError,
        "holds generation_config.json, which its manifest does not list",
    ),
    **{
        f"an altered {name}": (partial(_alter_listed, name=name), ArtifactError, "altered since it was compiled")
        for name in ("chat_template.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
    },
    "a model that transformers does not have": (
        partial(_change_config, model_type="kimi_k2"),
        CheckpointError,
        "no model of type 'kimi_k2'",
    ),
    "a model that writes no text": (
        partial(_change_config, model_type="vit"),
        CheckpointError,
        "no model that generates text",
    ),
    "a config of wrong types": (
        partial(_change_config, hidden_size="wide"),
        CheckpointError,
        "config that transformers cannot read",
    ),
    "a config of other sizes": (
        partial(_change_config, vocab_size=95),
        CheckpointError,
        "wrong shape for",
    ),
    "a generation config that cannot be read": (
        lambda f: _write_listed(f, "generation_config.json", "{"),
        CheckpointError,
        "generation_config.json cannot be read",
    ),
    "another plan": (
        lambda f: shutil.copy(f.parent / "other-plan", f / "plan.safetensors"),
        MismatchError,
        "is not the plan that the checkpoint was compiled with",
    ),
    "a file outside the folder": (
        _edit_manifest(lambda m: _rename_file(m, RANK_0, "../" + RANK_0)),
        ArtifactError,
        "not a relative path inside the folder",
    ),
    "weights of a quantization that it cannot undo": (
        partial(_change_config, quantization_config={"quant_method": "awq", "bits": 4}),
        MismatchError,
        "holds weights quantized with 'awq'",
    ),
    "layout hf": (_edit_manifest(lambda m: m.update(layout="hf")), MismatchError, "--layout ranks"),
}


@pytest.fixture
def copied(compiled_model, tmp_path):
    """A compiled checkpoint that may be damaged, beside a plan that is not its own."""
    made = compiled_model("olmoe")
    folder = tmp_path / "out"
    shutil.copytree(made.compiled["static"], folder)
    made.plans["cover"].save(tmp_path / "other-plan")
    return folder


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_checkpoint_is_refused_in_one_sentence(copied, damage, error, message):
    damage(copied)
    with pytest.raises(error, match=message):
        specmoe.load(copied)


@pytest.mark.parametrize("name", ["an altered tokenizer.model", "a file that is not listed"])
def test_without_hashing_only_alterations_pass(copied, name):
    damage, error, message = DAMAGE[name]
    damage(copied)
    if error is ArtifactError and "altered" in name:
        specmoe.load(copied, verify_hashes=False)
        return
    with pytest.raises(error, match=message):
        specmoe.load(copied, verify_hashes=False)


def test_a_rank_file_of_another_model_is_noticed_even_without_hashing(copied):
    _edit_manifest(lambda m: m.update(model_fingerprint="0" * 64))(copied)
    with pytest.raises(MismatchError, match="has model_fingerprint '"):
        specmoe.load(copied, verify_hashes=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"device": "nowhere"}, "the device nowhere cannot be used"), ({"dtype": "int3"}, "dtype is 'int3', one of auto")],
    ids=["device", "dtype"],
)
def test_a_wrong_argument_is_refused_in_one_sentence(compiled_model, arguments, message):
    with pytest.raises(UsageError, match=message):
        specmoe.load(compiled_model("olmoe").compiled["static"], **arguments)


@pytest.mark.parametrize(
    ("device", "chosen"), [(None, "cuda:3"), ("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_cuda_without_a_number_is_the_gpu_of_the_process(monkeypatch, device, chosen):
    monkeypatch.setattr(load_module, "default_device", lambda: torch.device("cuda:3"))
    monkeypatch.setattr(load_module, "usable_device", torch.device)
    assert load_module._own_device(device) == torch.device(chosen)


def test_a_gpu_without_room_for_the_weights_is_told_in_one_sentence(monkeypatch, compiled_model):
    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(load_module, "build_model", full)
    expected = r"the weights of 4 of 4 ranks do not fit on cpu \(CUDA out of memory\); start more processes"
    with pytest.raises(CheckpointError, match=expected):
        specmoe.load(compiled_model("olmoe").compiled["static"])


def test_the_processs_gpu_is_current_before_the_processes_meet(monkeypatch, copied):
    made_current = []
    monkeypatch.setattr(load_module, "_own_device", lambda _device: torch.device("cuda:3"))
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    (copied / "specmoe.json").unlink()
    with pytest.raises(ArtifactError, match="not a compiled checkpoint"):
        specmoe.load(copied)
    assert made_current == [torch.device("cuda:3")]


def test_a_type_may_be_given_by_name(compiled_model):
    assert specmoe.load(compiled_model("olmoe").compiled["static"], dtype="bfloat16").dtype == torch.bfloat16


def test_swapped_rank_files_are_noticed_even_without_hashing(compiled_model, random_plan, tmp_path):
    made = compiled_model("olmoe")
    plan = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(2,), top_k=3, layer_ids=(0, 1, 2))
    folder = tmp_path / "out"
    specmoe.reshard(made.source, plan, folder)
    _swap(*(folder / f"experts-rank-0000{rank}-of-00002.safetensors" for rank in (0, 1)))
    with pytest.raises(SpecmoeError, match="altered since"):
        specmoe.load(folder)
    with pytest.raises(MismatchError, match="rank 1 in its header, 0 was expected"):
        specmoe.load(folder, verify_hashes=False)


def test_a_shared_tensor_that_is_missing_is_refused_and_not_made_up(copied):
    shared = next(copied.glob("shared-*"))
    weights = load_file(shared)
    del weights["model.norm.weight"]
    save_file(weights, shared)
    _edit_manifest(lambda m: m["files"][shared.name].update(bytes=shared.stat().st_size))(copied)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of the model, such as model\.norm\.weight"):
        specmoe.load(copied, verify_hashes=False)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu_greedy_tokens_are_those_of_the_unmodified_model(compiled_model, family):
    made = compiled_model(family)
    original = unmodified(made).to("cuda")
    model = specmoe.load(made.compiled["cover"], device="cuda")
    tokens = some_tokens(3, 17).to("cuda")
    assert torch.equal(model.generate(tokens, **GREEDY), original.generate(tokens, **GREEDY))


@pytest.mark.gpu
def test_on_a_gpu_nccl_with_one_process_changes_nothing(compiled_model, tmp_path):
    import torch.distributed as dist

    made = compiled_model("mixtral")
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    try:
        model = specmoe.load(made.compiled["static"], decode=StaticDecode(max_tokens=8))
        assert model.device.type == "cuda"
        (served,) = serve_prompts(model, [some_tokens(9).tolist()], 12)
    finally:
        dist.destroy_process_group()
    expected = unmodified(made).to("cuda").generate(some_tokens(1, 9).to("cuda"), **GREEDY | {"eos_token_id": 2})
    assert served.token_ids == expected[0, 9:].tolist()


@pytest.mark.gpu
def test_on_a_gpu_bfloat16_is_as_near_to_float32_as_the_unmodified_model_in_bfloat16(compiled_model):
    made, tokens = compiled_model("qwen3_moe"), some_tokens(4, 24).to("cuda")
    with torch.no_grad():
        truth = unmodified(made).to("cuda")(tokens).logits
        theirs = unmodified(made, torch.bfloat16).to("cuda")(tokens).logits.float()
        ours = specmoe.load(made.compiled["cover"], device="cuda", dtype=torch.bfloat16)(tokens).logits.float()
    assert (ours - truth).abs().mean() < 1.15 * (theirs - truth).abs().mean()


@pytest.mark.gpu
def test_on_a_gpu_a_side_stream_gives_the_same_logits(compiled_model):
    made, tokens = compiled_model("olmoe"), some_tokens(3, 17).to("cuda")
    model = specmoe.load(made.compiled["cover"], device="cuda")
    with torch.no_grad():
        expected = model(tokens).logits
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            logits = model(tokens).logits
        torch.cuda.current_stream().wait_stream(stream)
    torch.testing.assert_close(logits, expected)
