"""Every kernel once on a small batch, checked against the references: what `compute-sanitizer` is run on."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernel_suite"))

import torch
from calls import assign, combine, dispatch, group_by_slot
from inputs import Batch, Shape, contiguous_tables, random_batches

from specmoe.kernels.assign.reference import assign_reference, group_by_slot_reference
from specmoe.kernels.capacity.capacity import CapacityLimits
from specmoe.kernels.capacity.fused import FusedSteps
from specmoe.kernels.capacity.limit import limit_with
from specmoe.kernels.capacity.reference import ReferenceSteps
from specmoe.kernels.combine.reference import combine_reference
from specmoe.kernels.dispatch.fused import dispatch_scaled_fused
from specmoe.kernels.dispatch.reference import dispatch_reference
from specmoe.kernels.routing_tables import RoutingTables

SHAPE = Shape(num_experts=16, top_k=4, hidden_size=48, intermediate_size=16)
# In one launch, and in several.
TOKENS = (7, 1300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    dry_run = parser.parse_args().dry_run
    for num_tokens in TOKENS[:1] if dry_run else TOKENS:
        for choice in ("static", "cover"):
            check(num_tokens, choice, torch.device("cpu" if dry_run else "cuda"))
    print("as the references")


def check(num_tokens: int, choice: str, device: torch.device) -> None:
    tables = contiguous_tables(SHAPE, 4, 1, choice, device)
    (batch,) = random_batches(SHAPE, num_tokens, 4, 1, device)
    assignment = assign(batch.index, batch.weights, batch.home, tables)
    require_equal(assignment, assign_reference(batch.index, batch.weights, batch.home, tables))
    slots = tables.num_physical_experts
    groups = group_by_slot(assignment.row_slots, 0, slots, 8)
    require_equal(groups, group_by_slot_reference(assignment.row_slots, 0, slots, 8))
    num_rows = int(assignment.row_offsets[-1])
    rows = dispatch(batch.hidden, assignment.token_rows, num_rows)
    require(torch.equal(rows, dispatch_reference(batch.hidden, assignment.token_rows, num_rows)), "dispatch")
    # In float32, since the interpreter rounds bfloat16 otherwise than a GPU.
    out = combine(rows.float(), assignment.token_rows, None)
    require(torch.equal(out, combine_reference(rows.float(), assignment.token_rows, None)), "combine")
    check_quantized(batch.hidden, assignment.token_rows, num_rows)
    check_limits(batch, tables)


def check_quantized(hidden: torch.Tensor, token_rows: torch.Tensor, num_rows: int) -> None:
    rows, scales = hidden.to(torch.float8_e4m3fn), hidden[:, :3].float().contiguous()
    moved = dispatch_scaled_fused(rows, scales, token_rows, num_rows)
    expected = (dispatch_reference(part, token_rows, num_rows) for part in (rows.view(torch.uint8), scales))
    for ours, theirs, name in zip(moved, expected, ("quantized rows", "scales"), strict=True):
        require(torch.equal(ours.view(theirs.dtype), theirs), name)


def check_limits(batch: Batch, tables: RoutingTables) -> None:
    """Half of the room that the batch wants, and what has none rerouted."""
    scores = torch.rand((len(batch.home), SHAPE.num_experts), device=batch.hidden.device)
    room = batch.index.numel() // (2 * SHAPE.num_experts * tables.ep_size)
    limits = CapacityLimits(
        level="expert", overflow="reroute", limits=torch.full_like(tables.dispatch_slot, room),
        scores=batch.weights, router_scores=scores,
    )  # fmt: skip
    arguments = (batch.index, batch.weights, batch.home, tables, limits)
    require_equal(limit_with(FusedSteps(), *arguments), limit_with(ReferenceSteps(), *arguments))


def require_equal(ours: object, theirs: object) -> None:
    for field in fields(ours):
        require(torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name)


def require(equal: bool, name: str) -> None:
    if not equal:
        raise SystemExit(f"{name} differs from the reference's")


if __name__ == "__main__":
    main()
