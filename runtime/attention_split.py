"""Keep one process's heads of an attention module: the module then yields its part of the sum over heads.

What is split is data: projections whose output rows are heads, those whose input columns are heads, parameters with
one entry per head, and what every process keeps whole. A module with anything else is refused by name. The tensors of
a checkpoint are cut by the same tables before they are read: stored whole, a process touches its own part.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from specmoe.errors import CheckpointError, UsageError
from specmoe.runtime.workers import Workers

HEAD_ROWS = {"q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"}
HEAD_COLUMNS = {"o_proj"}
HEAD_ENTRIES = {"sinks"}
WHOLE = {"q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm"}
# Whole too, but only where they normalise each head by itself.
HEAD_NORMS = {"q_norm", "k_norm"}

_ATTENTION_NAME = re.compile(r"(?:.*\.)?layers\.\d+\.self_attn\.(?P<module>\w+?)(?:\.(?P<kind>weight|bias))?")


def own_slices(tensors: Mapping[str, torch.Tensor], workers: Workers) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by name, those of attention cut to the heads of `workers.process`.

    Rows are views: where `tensors` are mapped files they stay there. Columns are copied.
    """
    return {name: _own_slice(name, tensor, workers) for name, tensor in tensors.items()}


def _own_slice(name: str, tensor: torch.Tensor, workers: Workers) -> torch.Tensor:
    match = _ATTENTION_NAME.fullmatch(name)
    if match is None:
        return tensor
    if match["module"] in HEAD_ROWS or (match["kind"] is None and match["module"] in HEAD_ENTRIES):
        return _part(tensor, 0, workers)
    if match["module"] in HEAD_COLUMNS and match["kind"] == "weight":
        return _part(tensor, 1, workers).contiguous()
    return tensor


def _part(tensor: torch.Tensor, dim: int, workers: Workers) -> torch.Tensor:
    return tensor.chunk(workers.world_size, dim=dim)[workers.process]


def split_attention(attention: Any, config: Any, workers: Workers) -> None:
    """Give the parameters of `attention`, which is on the meta device, the sizes of `workers.process`'s heads.

    Raises `UsageError` when the heads cannot be divided by the number of processes, and `CheckpointError` for a kind
    of attention that cannot be split by heads; the message names the reason.
    """
    _check_heads(attention, config, workers.world_size)
    for name, module in attention.named_children():
        if name in HEAD_ROWS:
            _keep(module, "weight", 0, workers)
            if module.bias is not None:
                _keep(module, "bias", 0, workers)
        elif name in HEAD_COLUMNS:
            _keep(module, "weight", 1, workers)
            # The bias joins the sum over processes once.
            if module.bias is not None and workers.process > 0:
                module.bias = None
        elif name in HEAD_NORMS:
            _check_norm(attention, name, module)
        elif name not in WHOLE:
            raise CheckpointError(f"{type(attention).__name__} has {name}, which tp attention cannot split")
    for name, _ in attention.named_parameters(recurse=False):
        if name not in HEAD_ENTRIES:
            raise CheckpointError(f"{type(attention).__name__} has {name}, which tp attention cannot split")
        _keep(attention, name, 0, workers)


def _check_heads(attention: Any, config: Any, world_size: int) -> None:
    heads = {"attention heads": config.num_attention_heads}
    if hasattr(attention, "k_proj"):
        heads["key-value heads"] = config.num_key_value_heads
    for kind, number in heads.items():
        if number % world_size:
            raise UsageError(
                f"the model's {number} {kind} cannot be split over {world_size} processes; start a number that "
                "divides them, or solve with --attention dp"
            )


def _check_norm(attention: Any, name: str, norm: Any) -> None:
    width, head_dim = norm.weight.shape[0], attention.head_dim
    if width != head_dim:
        raise CheckpointError(
            f"{type(attention).__name__} normalises across all heads ({name} spans {width} values, a head has "
            f"{head_dim}), so its heads cannot be split; solve with --attention dp"
        )


def _keep(module: Any, name: str, dim: int, workers: Workers) -> None:
    part = torch.empty_like(_part(getattr(module, name), dim, workers))
    setattr(module, name, torch.nn.Parameter(part, requires_grad=False))
