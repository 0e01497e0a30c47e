"""The whole MoE layer forward with all ranks on one GPU, step by step, against transformers on the same weights."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from calls import assign, combine, dispatch, group_by_slot
from gpu_timer import num_buffers, time_call
from inputs import Shape, contiguous_tables, random_batches
from operations import ALIGNMENT, Prepared
from transformers import Qwen3MoeConfig
from transformers.integrations.moe import grouped_mm_experts_forward
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from specmoe.kernels.routing_tables import RoutingTables
from specmoe.runtime.slot_product import slot_product

PRODUCT = "grouped product"
OURS = "whole layer, specmoe"
THEIRS = "whole layer, transformers grouped_mm"
# bfloat16 outputs of two orders of addition agree to about this share of the largest.
AGREEMENT = 2e-2


def make_experts(shape: Shape, device: torch.device) -> torch.nn.Module:
    """A transformers experts module of the shape, with random bfloat16 weights: slot e holds expert e."""
    config = Qwen3MoeConfig(
        num_experts=shape.num_experts,
        hidden_size=shape.hidden_size,
        moe_intermediate_size=shape.intermediate_size,
        num_experts_per_tok=shape.top_k,
        hidden_act="silu",
    )
    config._experts_implementation = "grouped_mm"
    with device:
        experts = Qwen3MoeExperts(config).to(torch.bfloat16)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return experts.eval()


@torch.no_grad()
def measure_layer(shape: Shape, experts: torch.nn.Module, num_tokens: int, num_ranks: int) -> Iterator[dict[str, Any]]:
    """One record per step, for the sum of them, and for transformers; checks first that both agree."""
    device = next(experts.parameters()).device
    tables = contiguous_tables(shape, num_ranks, 0, "static", device)
    count = num_buffers(num_tokens * 2 * shape.hidden_size * (1 + shape.top_k), device)
    batches = random_batches(shape, num_tokens, num_ranks, count, tables.device)
    prepared = [Prepared(batch, tables) for batch in batches]
    _check_agreement(experts, prepared[0], tables)
    for name, step in _steps(experts, tables).items():
        captured = name not in (PRODUCT, OURS, THEIRS) or _is_product_captured(device)
        timing = time_call(lambda i, step=step: step(prepared[i]), count, device, capture=captured)
        yield {"tokens": num_tokens, "step": name, **asdict(timing)}


def specmoe_layer(experts: torch.nn.Module, prepared: Prepared, tables: RoutingTables) -> torch.Tensor:
    """[T, H]; sizes that a serving step knows beforehand, rows and places, are taken from `prepared`."""
    batch = prepared.batch
    assignment = assign(batch.index, batch.weights, batch.home, tables)
    rows = dispatch(batch.hidden, assignment.token_rows, prepared.num_rows)
    slots, weights = assignment.row_slots[: prepared.num_rows], assignment.row_weights[: prepared.num_rows]
    groups = group_by_slot(slots, 0, tables.num_physical_experts, ALIGNMENT)
    expanded = dispatch(rows, groups.positions, prepared.num_places)
    partial = combine(slot_product(experts, expanded, groups.slot_offsets), groups.positions, weights)
    return combine(partial, assignment.token_rows, None)


def _steps(experts: torch.nn.Module, tables: RoutingTables) -> dict[str, Callable[[Prepared], object]]:
    slots = tables.num_physical_experts
    return {
        "assign": lambda p: assign(p.batch.index, p.batch.weights, p.batch.home, tables),
        "dispatch": lambda p: dispatch(p.batch.hidden, p.assignment.token_rows, p.num_rows),
        "group": lambda p: group_by_slot(p.row_slots, 0, slots, ALIGNMENT),
        "expand": lambda p: dispatch(p.rows, p.groups.positions, p.num_places),
        PRODUCT: lambda p: slot_product(experts, p.products, p.groups.slot_offsets),
        "combine of a rank": lambda p: combine(p.products, p.groups.positions, p.row_weights),
        "combine of the ranks' rows": lambda p: combine(p.rows, p.assignment.token_rows, None),
        OURS: lambda p: specmoe_layer(experts, p, tables),
        THEIRS: lambda p: grouped_mm_experts_forward(
            experts, p.batch.hidden, p.batch.index, p.batch.weights.to(p.batch.hidden.dtype)
        ),
    }


def _is_product_captured(device: torch.device) -> bool:
    """Whether torch's grouped product waits for nothing: before Hopper it asks the device for the groups' sizes
    (github.com/pytorch/pytorch/issues/169970)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def _check_agreement(experts: torch.nn.Module, prepared: Prepared, tables: RoutingTables) -> None:
    batch = prepared.batch
    ours = specmoe_layer(experts, prepared, tables).float()
    weights = batch.weights.to(batch.hidden.dtype)
    theirs = grouped_mm_experts_forward(experts, batch.hidden, batch.index, weights).float()
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-9))
    if not difference < AGREEMENT:
        raise SystemExit(f"the layer differs from transformers' by {difference:.3g} of its largest value")
