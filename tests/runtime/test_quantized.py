"""Quantized weights are dequantized when they are loaded: the logits are those of the model that they stand for."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import specmoe
from specmoe.errors import CheckpointError
from specmoe.runtime.stored_weights import dequantize_shared, slot_weights

pytestmark = pytest.mark.usefixtures("quiet_transformers")

# Neither the experts' 24 rows nor the attention's 24 columns are whole blocks.
BLOCK = 16
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
