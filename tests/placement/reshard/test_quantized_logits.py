"""Quantized checkpoints that transformers can run on a CPU, by dequantizing: renumbered, they give the same logits.

The tests quantize a tiny random model themselves, in the tensors of published checkpoints; that it still resembles the
model before is checked first. With two scales exchanged the logits are others.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from specmoe.checkpoint import open_checkpoint
from specmoe.errors import MismatchError
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.reshard.compile import reshard
from specmoe.placement.reshard.verify_files import verify_files
from specmoe.runtime.load import load

ROWS = [[4, 1, 7, 2, 0, 3, 6, 5], [5, 0, 2, 7, 1, 6, 3, 4]]
FP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
Tensors = dict[str, torch.Tensor]


def fp8_blocks(name: str, weight: torch.Tensor) -> Tensors:
    """DeepSeek's: one scale for each block of 16 x 32."""
    blocks = weight.unflatten(0, (-1, 16)).unflatten(2, (-1, 32))
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    quantized = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1)
    return {f"{name}.weight": quantized.to(torch.float8_e4m3fn), f"{name}.weight_scale_inv": scales}


def fp8_rows(name: str, weight: torch.Tensor) -> Tensors:
    """compressed-tensors': one scale for each row."""
    scales = weight.abs().amax(dim=1, keepdim=True) / 448
    return {f"{name}.weight": (weight / scales).to(torch.float8_e4m3fn), f"{name}.weight_scale": scales}


def int4_groups(name: str, weight: torch.Tensor) -> Tensors:
    """compressed-tensors': eight numbers in an int32, lowest bits first, one scale for 32 of a row."""
    groups = weight.unflatten(1, (-1, 32))
    scales = groups.abs().amax(dim=2) / 7
    numbers = (groups / scales[..., None]).round().flatten(1).to(torch.int64) + 8
    packed = (numbers.unflatten(1, (-1, 8)) << (torch.arange(8) * 4)).sum(dim=2)
    return {
        f"{name}.weight_packed": torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32),
        f"{name}.weight_scale": scales,
        f"{name}.weight_shape": torch.tensor(weight.shape),
    }


def mxfp4(name: str, weight: torch.Tensor) -> Tensors:
    """gpt-oss': two numbers in a byte, one power of two for 32 of a row; `weight` is [E, in, out]."""
    groups = weight.transpose(1, 2).unflatten(2, (-1, 32))
    exponents = (groups.abs().amax(dim=3) / 6).log2().ceil()
    scaled = groups / exponents.exp2()[..., None]
    numbers = (scaled.abs()[..., None] - FP4_VALUES).abs().argmin(dim=-1) + 8 * (scaled < 0)
    return {
        f"{name}_blocks": (numbers[..., ::2] + 16 * numbers[..., 1::2]).to(torch.uint8),
        f"{name}_scales": (exponents + 127).to(torch.uint8),
    }


def compressed(kind: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"],
    }


@dataclass(frozen=True, kw_only=True)
class Format:
    name: str
    model_type: str
    quantize: Callable[[str, torch.Tensor], Tensors]
    config: Mapping[str, Any]
    scale: str


FORMATS = (
    Format(
        name="fp8 blocks",
        model_type="qwen3_moe",
        quantize=fp8_blocks,
        config={"quant_method": "fp8", "weight_block_size": [16, 32], "modules_to_not_convert": ["self_attn", "gate"]},
        scale="weight_scale_inv",
    ),
    Format(
        name="compressed-tensors fp8",
        model_type="qwen3_moe",
        quantize=fp8_rows,
        config=compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        scale="weight_scale",
    ),
    Format(
        name="compressed-tensors int4",
        model_type="qwen3_moe",
        quantize=int4_groups,
        config=compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32),
        scale="weight_scale",
    ),
    Format(name="mxfp4", model_type="gpt_oss", quantize=mxfp4, config={"quant_method": "mxfp4"}, scale="scales"),
)


def is_expert_weight(name: str) -> bool:
    return ".experts." in name and name.endswith(("_proj", "_proj.weight"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Format], torch.Tensor]:
    """`make(kind)` saves a quantized model at `tmp_path / "m"` and returns the logits that it had before."""

    def save(kind: Format) -> torch.Tensor:
        from transformers import AutoModelForCausalLM
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        torch.manual_seed(0)
        config_class = CONFIG_MAPPING[kind.model_type]
        model = AutoModelForCausalLM.from_config(
            config_class(**{name: size for name, size in SIZES.items() if hasattr(config_class(), name)})
        ).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        model.save_pretrained(tmp_path / "m")
        tensors: Tensors = {}
        for name, tensor in load_file(tmp_path / "m" / "model.safetensors").items():
            tensors |= kind.quantize(name.removesuffix(".weight"), tensor) if is_expert_weight(name) else {name: tensor}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
        config_file = tmp_path / "m" / "config.json"
        config = {**json.loads(config_file.read_text()), "quantization_config": {**kind.config, "dequantize": True}}
        config_file.write_text(json.dumps(config))
        return logits_of(model)

    return save


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens).logits.float()


def loaded_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / first.abs().max())


def exchange_scales(folder: Path, suffix: str) -> None:
    """Exchange the first scales of the two layers."""
    tensors = open_checkpoint(folder).tensors
    scales = sorted(name for name in tensors if name.endswith(suffix))
    names = [next(name for name in scales if f"layers.{layer}." in name) for layer in (0, 1)]
    contents = [tensors[name].file.read_bytes()[tensors[name].begin : tensors[name].end] for name in names]
    for name, content in zip(names, reversed(contents), strict=True):
        with tensors[name].file.open("r+b") as file:
            file.seek(tensors[name].begin)
            file.write(content)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_a_renumbered_quantized_checkpoint_gives_the_same_logits(
    tmp_path, make, permutation_plan: Callable[..., PlacementPlan], proven, kind
) -> None:
    before = make(kind)
    source, out = tmp_path / "m", tmp_path / "out"
    quantized = loaded_logits(source)
    assert 1e-4 < distance(before, quantized) < 0.5
    plan = permutation_plan(ROWS, ep_size=4, layer_ids=(0, 1))
    assert reshard(source, plan, out, layout="hf").expert_format == "stacked"
    assert verify_files(out, source).passed
    assert distance(quantized, loaded_logits(out)) < 1e-5
    exchange_scales(out, kind.scale)
    assert distance(quantized, loaded_logits(out)) > 1e-3
    proven(kind.model_type, kind.name, "hf", "same logits when dequantized, other logits with scales exchanged")


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_rank_files_hold_every_piece_of_a_quantized_expert(
    tmp_path, make, permutation_plan: Callable[..., PlacementPlan], proven, kind
) -> None:
    make(kind)
    plan = permutation_plan(ROWS, ep_size=4, layer_ids=(0, 1))
    assert reshard(tmp_path / "m", plan, tmp_path / "out").expert_format == "stacked"
    assert verify_files(tmp_path / "out", tmp_path / "m").passed
    if kind.name.startswith("compressed-tensors"):
        with pytest.raises(MismatchError, match="quantized"):
            load(tmp_path / "out", device="cpu", dtype=torch.float32)
        proven(kind.model_type, kind.name, "ranks", "by bytes; not run by specmoe")
        return
    ran = logits_of(load(tmp_path / "out", device="cpu", dtype=torch.float32))
    assert distance(loaded_logits(tmp_path / "m"), ran) < 1e-5
    proven(kind.model_type, kind.name, "ranks", "by bytes; run by specmoe with the logits of the dequantized model")
