"""The kernels as they are measured: by the functions that the runtime calls; on a CPU, where those run the references,
the kernels themselves in Triton's interpreter, which says nothing about speed and all about whether it works."""

import torch

from specmoe.kernels.assign.assign import assign as assign_checked
from specmoe.kernels.assign.assign import group_by_slot as group_checked
from specmoe.kernels.assign.assignment import Assignment, SlotGroups
from specmoe.kernels.assign.fused import assign_fused
from specmoe.kernels.assign.group_fused import group_by_slot_fused
from specmoe.kernels.combine.combine import combine as combine_checked
from specmoe.kernels.combine.fused import combine_fused
from specmoe.kernels.dispatch.dispatch import dispatch as dispatch_checked
from specmoe.kernels.dispatch.fused import dispatch_fused
from specmoe.kernels.routing_tables import RoutingTables


def assign(index: torch.Tensor, weights: torch.Tensor, home: torch.Tensor, tables: RoutingTables) -> Assignment:
    if index.is_cuda:
        return assign_checked(index, weights, home, tables)
    return assign_fused(index, weights, home, tables, tables.replica_choice)


def group_by_slot(row_slots: torch.Tensor, first_slot: int, num_slots: int, alignment: int = 1) -> SlotGroups:
    return (group_checked if row_slots.is_cuda else group_by_slot_fused)(row_slots, first_slot, num_slots, alignment)


def dispatch(rows: torch.Tensor, positions: torch.Tensor, num_rows: int) -> torch.Tensor:
    out: torch.Tensor = (dispatch_checked if rows.is_cuda else dispatch_fused)(rows, positions, num_rows)
    return out


def combine(rows: torch.Tensor, positions: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    out: torch.Tensor = (combine_checked if rows.is_cuda else combine_fused)(rows, positions, weights)
    return out
