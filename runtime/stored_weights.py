"""Weights as checkpoints store them, and as they are computed with: plain, FP8 in blocks, MXFP4.

FP8 (`quant_method` "fp8"): X.weight float8 [M, N] and X.weight_scale_inv [ceil(M / 128), ceil(N / 128)], by which each
block is multiplied. MXFP4 (gpt-oss): X_blocks uint8 [R, N / 32, 16], two values in a byte, and X_scales uint8
[R, N / 32], the exponents. Both are dequantized when they are loaded; any other format is refused by its name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from specmoe.errors import CheckpointError, MismatchError

Block = tuple[int, int] | None

_DEQUANTIZED = ("fp8", "mxfp4")
_SCALE = "_scale_inv"
_MXFP4_BLOCKS, _MXFP4_SCALES = "_blocks", "_scales"
# transformers' parameters of an experts module, and the published projections whose rows each concatenates.
_PROJECTIONS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",),),
}


@dataclass(frozen=True, kw_only=True)
class SlotWeights:
    """One expert parameter of a rank's slots: `read(slot)` gives a slot's values, of `shape`.

    sources: the stored tensors that it is made of. stored: [S, *shape], where these bytes are the values themselves.
    """

    num_slots: int
    shape: tuple[int, ...]
    read: Callable[[int], torch.Tensor]
    sources: tuple[str, ...]
    stored: torch.Tensor | None = None


def require_known_quantization(quantization: Mapping[str, Any], where: str) -> None:
    """Raise `MismatchError` for weights that cannot be dequantized here.

    quantization: the configuration's `quantization_config`, empty where it has none.
    """
    method = quantization.get("quant_method")
    if quantization and method not in _DEQUANTIZED:
        raise MismatchError(
            f"{where} holds weights quantized with {method!r}, which this runtime cannot multiply (it dequantizes "
            f"{' and '.join(_DEQUANTIZED)}); compile an unquantized checkpoint, or use --layout hf with an engine "
            "that can"
        )


def fp8_block(quantization: Mapping[str, Any]) -> Block:
    """The rows and columns that share one FP8 scale; None: one scale for a whole tensor."""
    size = quantization.get("weight_block_size")
    return None if size is None else (int(size[0]), int(size[1]))


def dequantize_shared(tensors: Mapping[str, torch.Tensor], block: Block, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """`tensors` by name: those that have scales as `dtype`, all others as they are, and no scales."""
    plain = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in tensors:
            continue
        scale = tensors.get(name + _SCALE)
        plain[name] = tensor if scale is None else _dequantize_fp8(name, tensor, scale, block).to(dtype)
    return plain


def slot_weights(module: str, stored: Mapping[str, torch.Tensor], block: Block) -> dict[str, SlotWeights]:
    """The parameters, by full name, of the experts module `module`, from the tensors that a rank file has for it.

    Raises `CheckpointError` for a tensor that no parameter is made of.
    """
    labels = {name.removeprefix(f"{module}."): tensor for name, tensor in stored.items()}
    found: dict[str, SlotWeights] = {}
    for parameter, choices in _PROJECTIONS.items():
        names = next((c for c in choices if all(f"{name}.weight" in labels for name in c)), None)
        # "up_proj" alone is a parameter only where no gate has taken it.
        if names is not None and not (parameter == "up_proj" and "gate_up_proj" in found):
            found[parameter] = _of_projections(labels, names, block)
    for label, tensor in labels.items():
        parameter = label.removesuffix(_MXFP4_BLOCKS)
        if parameter != label and parameter + _MXFP4_SCALES in labels:
            found[parameter] = _of_mxfp4(label, tensor, parameter + _MXFP4_SCALES, labels)
        elif "." not in label and not label.endswith(_MXFP4_SCALES):
            found[label] = _of_plain(label, tensor)
    used = {source for weights in found.values() for source in weights.sources}
    if unknown := sorted(labels.keys() - used):
        raise CheckpointError(f"{module}.{unknown[0]} is stored in a way that this runtime cannot dequantize")
    return {f"{module}.{parameter}": weights for parameter, weights in found.items()}


def _of_plain(label: str, tensor: torch.Tensor) -> SlotWeights:
    return SlotWeights(
        num_slots=tensor.shape[0],
        shape=tuple(tensor.shape[1:]),
        read=lambda slot: tensor[slot],
        sources=(label,),
        stored=tensor,
    )


def _of_mxfp4(label: str, blocks: torch.Tensor, scales: str, labels: Mapping[str, torch.Tensor]) -> SlotWeights:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    def read(slot: int) -> torch.Tensor:
        whole: torch.Tensor = convert_moe_packed_tensors(blocks[slot, None], labels[scales][slot, None])
        return whole[0]

    rows, groups, num_bytes = blocks.shape[1:]
    # transformers' parameter is transposed.
    shape = (groups * num_bytes * 2, rows)
    return SlotWeights(num_slots=blocks.shape[0], shape=shape, read=read, sources=(label, scales))


def _of_projections(labels: Mapping[str, torch.Tensor], names: Sequence[str], block: Block) -> SlotWeights:
    weights = [f"{name}.weight" for name in names]
    scaled = [weight for weight in weights if weight + _SCALE in labels]

    def read(slot: int) -> torch.Tensor:
        parts = [
            _dequantize_fp8(weight, labels[weight][slot], labels[weight + _SCALE][slot], block)
            if weight in scaled
            else labels[weight][slot]
            for weight in weights
        ]
        return torch.cat(parts)

    num_slots, _, *columns = labels[weights[0]].shape
    rows = sum(labels[weight].shape[1] for weight in weights)
    return SlotWeights(
        num_slots=num_slots,
        shape=(rows, *columns),
        read=read,
        sources=(*weights, *(weight + _SCALE for weight in scaled)),
    )


def _dequantize_fp8(name: str, weight: torch.Tensor, scale: torch.Tensor, block: Block) -> torch.Tensor:
    """float32 [M, N]; weight: float8 [M, N]; scale: one number, or one per block."""
    if block is None:
        return weight.float() * scale.float()
    expected = [-(-size // part) for size, part in zip(weight.shape, block, strict=True)]
    if list(scale.shape) != expected:
        raise CheckpointError(f"the scales of {name} have the shape {list(scale.shape)}, {expected} was expected")
    by_row = scale.float().repeat_interleave(block[0], dim=0)[: weight.shape[0]]
    return weight.float() * by_row.repeat_interleave(block[1], dim=1)[:, : weight.shape[1]]
