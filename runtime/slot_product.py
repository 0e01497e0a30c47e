"""Apply the experts of this process's slots to rows grouped by slot."""

from itertools import pairwise

import torch
from torch.nn import functional as F


def slot_product(experts: torch.nn.Module, rows: torch.Tensor, slot_offsets: torch.Tensor) -> torch.Tensor:
    """[M, H]: each row through its slot's expert, without the routing weight; rows: [M, H] in slot-major order.

    experts: a transformers experts module (one made for `ALL_EXPERTS_FUNCTIONS`) whose parameters hold one entry per
    slot in dimension 0; its flags say whether it is gated, biased or transposed. slot_offsets: int32 [S + 1], the rows
    of slot s are `slot_offsets[s] : slot_offsets[s + 1]`; rows past the last are padding.
    """
    if rows.device.type == "cuda" and rows.dtype == torch.bfloat16:
        return _grouped(experts, rows, slot_offsets)
    return _slot_by_slot(experts, rows, slot_offsets.tolist())


def _slot_by_slot(experts: torch.nn.Module, rows: torch.Tensor, offsets: list[int]) -> torch.Tensor:
    out = torch.empty_like(rows)
    for slot, (start, end) in enumerate(pairwise(offsets)):
        if start < end:
            inner = _linear(experts, _first(experts), rows[start:end], slot)
            out[start:end] = _linear(experts, "down_proj", _activate(experts, inner), slot)
    return _post_norm(experts, out)


def _grouped(experts: torch.nn.Module, rows: torch.Tensor, slot_offsets: torch.Tensor) -> torch.Tensor:
    num_slots = slot_offsets.shape[0] - 1
    row_ids = torch.arange(rows.shape[0], device=rows.device, dtype=slot_offsets.dtype)
    slot_of_row = torch.searchsorted(slot_offsets[1:], row_ids, right=True).clamp(max=num_slots - 1)
    inner = _grouped_linear(experts, _first(experts), rows, slot_offsets, slot_of_row)
    out = _grouped_linear(experts, "down_proj", _activate(experts, inner), slot_offsets, slot_of_row)
    return _post_norm(experts, out)


def _first(experts: torch.nn.Module) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _activate(experts: torch.nn.Module, inner: torch.Tensor) -> torch.Tensor:
    activation = experts._apply_gate if experts.has_gate else experts.act_fn
    return activation(inner)  # type: ignore[operator, no-any-return]


def _linear(experts: torch.nn.Module, name: str, rows: torch.Tensor, slot: int) -> torch.Tensor:
    weight = getattr(experts, name)[slot]
    bias = getattr(experts, f"{name}_bias")[slot] if experts.has_bias else None
    if not experts.is_transposed:
        return F.linear(rows, weight, bias)
    out: torch.Tensor = rows @ weight
    return out if bias is None else out + bias


def _grouped_linear(
    experts: torch.nn.Module, name: str, rows: torch.Tensor, slot_offsets: torch.Tensor, slot_of_row: torch.Tensor
) -> torch.Tensor:
    weight = getattr(experts, name)
    matrices = weight if experts.is_transposed else weight.transpose(-2, -1)
    out: torch.Tensor = F.grouped_mm(rows, matrices, offs=slot_offsets[1:])
    return out + getattr(experts, f"{name}_bias")[slot_of_row] if experts.has_bias else out


def _post_norm(experts: torch.nn.Module, out: torch.Tensor) -> torch.Tensor:
    # transformers before 5.11 knows no such flag.
    if getattr(experts, "has_post_expert_norm", False):
        return experts.post_expert_norm(out)  # type: ignore[operator, no-any-return]
    return out
