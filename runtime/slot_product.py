"""Apply the experts of this process's slots to rows grouped by slot."""

from collections.abc import Sequence
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
    spans = [(slot, start, end) for slot, (start, end) in enumerate(pairwise(offsets)) if start < end]
    inner = _linear_by_slot(experts, _first(experts), rows, spans)
    return _post_norm(experts, _linear_by_slot(experts, "down_proj", _activate(experts, inner), spans))


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


def _linear_by_slot(
    experts: torch.nn.Module, name: str, rows: torch.Tensor, spans: Sequence[tuple[int, int, int]]
) -> torch.Tensor:
    """spans: (slot, first row, end of its rows)."""
    matrices = _matrices(experts, name)
    biases = getattr(experts, f"{name}_bias") if experts.has_bias else None
    out = rows.new_empty((rows.shape[0], matrices.shape[2]))
    for slot, start, end in spans:
        if biases is None:
            torch.mm(rows[start:end], matrices[slot], out=out[start:end])
        elif experts.is_transposed:
            # Rounded before the bias too, as by transformers' own modules.
            torch.mm(rows[start:end], matrices[slot], out=out[start:end]).add_(biases[slot])
        else:
            torch.addmm(biases[slot], rows[start:end], matrices[slot], out=out[start:end])
    return out


def _matrices(experts: torch.nn.Module, name: str) -> torch.Tensor:
    """[S, in, out]: the weights of each slot."""
    weight = getattr(experts, name)
    matrices: torch.Tensor = weight if experts.is_transposed else weight.transpose(-2, -1)
    return matrices


def _grouped_linear(
    experts: torch.nn.Module, name: str, rows: torch.Tensor, slot_offsets: torch.Tensor, slot_of_row: torch.Tensor
) -> torch.Tensor:
    out: torch.Tensor = F.grouped_mm(rows, _matrices(experts, name), offs=slot_offsets[1:])
    return out + getattr(experts, f"{name}_bias")[slot_of_row] if experts.has_bias else out


def _post_norm(experts: torch.nn.Module, out: torch.Tensor) -> torch.Tensor:
    # transformers before 5.11 knows no such flag.
    if getattr(experts, "has_post_expert_norm", False):
        return experts.post_expert_norm(out)  # type: ignore[operator, no-any-return]
    return out
