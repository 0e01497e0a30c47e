"""Quantized weights are dequantized when they are loaded: the logits are those of the model that they stand for."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import specmoe
from specmoe.errors import CheckpointError, MismatchError
from specmoe.runtime.quantization_config import stated_quantization
from specmoe.runtime.stored_weights import dequantize_shared, require_known_quantization, slot_weights

pytestmark = pytest.mark.usefixtures("quiet_transformers")

# Neither the experts' 24 rows nor the attention's 24 columns are whole blocks.
BLOCK = 16
SMALL_TOWER = {
    "hidden_size": 16,
    "embed_dim": 16,
    "depth": 1,
    "num_hidden_layers": 1,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "image_size": 16,
    "out_hidden_size": 32,
    "deepstack_visual_indexes": [0],
    "encoder_layers": 1,
    "d_model": 16,
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "output_dim": 32,
    "num_position_embeddings": 16,
    "head_dim": 8,
    "vision_output_dim": 16,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
    "adapter_in_dim": 16,
    "adapter_out_dim": 32,
    "adapter_input_size": 16,
    "downsample_hidden_size": 8,
    "mlp_dim": 16,
    "output_channels": 8,
    "downsample_channels": [8, 8],
    "window_size": 2,
    "global_attn_indexes": [0],
}
QUANTIZED = (".experts.", "q_b_proj.weight", "o_proj.weight", "shared_experts.")


def tokens():
    return torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(7))


def logits_of(model):
    with torch.no_grad():
        return model(tokens()).logits


def in_blocks(weight):
    """float8 weight, its scales and what they stand for, rounded to float32."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    quantized = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    plain = torch.empty(rows, columns)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            scales[i, j] = weight[block].abs().max() / 448
            quantized[block] = (weight[block] / scales[i, j]).to(torch.float8_e4m3fn)
            plain[block] = quantized[block].float() * scales[i, j]
    return quantized, scales, plain


@pytest.fixture(scope="module")
def fp8(compiled_model, tmp_path_factory):
    """A folder with `source`, FP8 as DeepSeek-V3 is published, and `plain`, the model that it stands for."""
    made, folder = compiled_model("deepseek_v3"), tmp_path_factory.mktemp("fp8")
    stored, plain = {}, {}
    for name, weight in load_file(made.source / "model.safetensors").items():
        stored[name] = plain[name] = weight
        if any(part in name for part in QUANTIZED):
            stored[name], stored[f"{name}_scale_inv"], plain[name] = in_blocks(weight)
    config = json.loads((made.source / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    for kind, tensors, extra in (("source", stored, {"quantization_config": fp8}), ("plain", plain, {})):
        (folder / kind).mkdir()
        save_file(tensors, folder / kind / "model.safetensors", metadata={"format": "pt"})
        (folder / kind / "config.json").write_text(json.dumps(config | extra))
    return folder


def test_fp8_blocks_give_the_logits_of_the_model_that_they_stand_for(fp8, compiled_model, tmp_path):
    from transformers import AutoModelForCausalLM

    specmoe.reshard(fp8 / "source", compiled_model("deepseek_v3").plans["cover"], tmp_path / "out")
    model = specmoe.load(tmp_path / "out")
    expected = logits_of(AutoModelForCausalLM.from_pretrained(fp8 / "plain", experts_implementation="eager"))
    assert float((logits_of(model) - expected).abs().max() / expected.abs().max()) < 2e-6
    assert not hasattr(model.config, "quantization_config"), "it is an ordinary model now"


def test_a_quantization_that_a_part_of_the_configuration_states(compiled_model, tmp_path):
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = compiled_model("deepseek_v3")
    kind = CONFIG_MAPPING["kimi_k25"]
    vision = type(kind().vision_config)(**SMALL_TOWER).to_dict()
    config = kind(text_config=json.loads((made.source / "config.json").read_text()), vision_config=vision)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval().requires_grad_(False)
    model.save_pretrained(tmp_path / "source")
    tensors, stated = {}, model.state_dict()
    for name, weight in load_file(tmp_path / "source" / "model.safetensors").items():
        name = name.replace("language_model.model.blocks.", "language_model.model.layers.")  # as published
        tensors[name] = weight
        if ".experts." in name:
            tensors[name], tensors[f"{name}_scale_inv"], _ = in_blocks(weight)
    save_file(tensors, tmp_path / "source" / "model.safetensors", metadata={"format": "pt"})
    path = tmp_path / "source" / "config.json"
    written = json.loads(path.read_text())
    written["text_config"]["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    path.write_text(json.dumps(written))
    specmoe.reshard(tmp_path / "source", made.plans["cover"], tmp_path / "out")
    loaded = specmoe.load(tmp_path / "out")
    for name, parameter in stated.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            for expert in range(len(parameter)):
                rows = parameter[expert].chunk(2) if name.endswith("gate_up_proj") else [parameter[expert]]
                parameter[expert] = torch.cat([in_blocks(part)[2] for part in rows])
    expected = logits_of(model)
    assert float((logits_of(loaded) - expected).abs().max() / expected.abs().max()) < 2e-6
    assert not hasattr(loaded.config.text_config, "quantization_config")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": "fp8"}, "has the quantization_config 'fp8', a JSON object was expected"),
        ({"text_config": {"quantization_config": [1]}}, r"has the quantization_config \[1\], a JSON object"),
        (
            {"quantization_config": {"bits": 8}, "text_config": {"quantization_config": {"bits": 4}}},
            "several parts with a quantization_config of their own",
        ),
    ],
)
def test_a_statement_that_leaves_a_doubt_is_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        stated_quantization(config, "here")


def test_a_statement_is_found_in_any_part():
    fp8 = {"quant_method": "fp8"}
    nested = {"thinker_config": {"text_config": {"quantization_config": fp8}}}
    assert stated_quantization(nested, "here") == fp8
    assert stated_quantization(nested | {"quantization_config": fp8}, "here") == fp8
    assert stated_quantization({"text_config": {"quantization_config": None}}, "here") == {}


def test_a_quantization_without_a_method_is_refused():
    with pytest.raises(MismatchError, match="quantized with None"):
        require_known_quantization({"bits": 4}, "here")


def test_mxfp4_gives_the_logits_that_transformers_dequantizes_to(compiled_model, random_plan, tmp_path):
    from transformers import AutoModelForCausalLM, Mxfp4Config

    made, source = compiled_model("gpt_oss"), tmp_path / "source"
    source.mkdir()
    generator = torch.Generator().manual_seed(3)
    inner, hidden = 64, 32
    tensors = {}
    for name, weight in load_file(made.source / "model.safetensors").items():
        # 24 inner columns are no whole block of 32.
        if name.endswith("gate_up_proj_bias"):
            weight = torch.randn((8, 2 * inner), generator=generator)
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = weight
            continue
        rows, columns = (2 * inner, hidden) if name.endswith("gate_up_proj") else (hidden, inner)
        shape = (8, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 126, shape, generator=generator, dtype=torch.uint8)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((made.source / "config.json").read_text()) | {"intermediate_size": inner}
    config |= {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}}
    (source / "config.json").write_text(json.dumps(config))
    specmoe.reshard(source, made.plans["cover"], tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            quantization_config=Mxfp4Config(dequantize=True),
            experts_implementation="eager",
        )
    expected, got = logits_of(original), logits_of(specmoe.load(tmp_path / "out"))
    assert float((got - expected).abs().max() / expected.abs().max()) < 2e-6


def test_scales_of_another_grid_are_refused():
    weight = {"a.weight": torch.zeros(32, 32, dtype=torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(2, 1)}
    with pytest.raises(CheckpointError, match=r"scales of a\.weight have the shape \[2, 1\], \[2, 2\] was expected"):
        dequantize_shared(weight, (BLOCK, BLOCK), torch.float32)


def test_one_scale_may_be_for_a_whole_tensor():
    values = torch.tensor(np.arange(6).reshape(2, 3), dtype=torch.float32)
    stored = {"a.weight": values.to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.tensor(0.5), "b": values}
    plain = dequantize_shared(stored, None, torch.float32)
    assert plain.keys() == {"a.weight", "b"}
    assert torch.equal(plain["a.weight"], values * 0.5)


@pytest.mark.parametrize("label", ["gate_proj.qweight", "gate_proj.weight_scale", "gate_up_proj_scales"])
def test_an_experts_tensor_that_nothing_uses_is_refused(label):
    stored = {f"m.{name}": torch.zeros(2, 4, 4) for name in ("gate_proj.weight", "up_proj.weight", label)}
    with pytest.raises(CheckpointError, match=f"m.{label} is stored in a way"):
        slot_weights("m", stored, None)
