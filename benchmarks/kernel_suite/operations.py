"""Each kernel on its own, beside its PyTorch reference and torch's own indexing operations."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from calls import assign, combine, dispatch, group_by_slot
from gpu_timer import Call, num_buffers, time_call
from inputs import Batch, Shape, contiguous_tables, random_batches
from transformers_path import permute, sort_pairs, unpermute

from specmoe.kernels.assign.assignment import Assignment, SlotGroups
from specmoe.kernels.assign.reference import assign_reference, group_by_slot_reference
from specmoe.kernels.combine.reference import combine_reference
from specmoe.kernels.dispatch.reference import dispatch_reference
from specmoe.kernels.routing_tables import RoutingTables

# Groups begin where torch's grouped product takes 16-byte rows of bfloat16.
ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True)
class Operation:
    """name: what is done; implementation: by whom; moved_bytes: what must be read and written, None where the time is
    not one of moving rows; captured: whether a CUDA graph can hold it (no host synchronisation)."""

    name: str
    implementation: str
    call: Call
    moved_bytes: int | None
    captured: bool = True


class Prepared:
    """A batch and everything that the later steps need of it."""

    def __init__(self, batch: Batch, tables: RoutingTables) -> None:
        self.batch = batch
        self.assignment: Assignment = assign(batch.index, batch.weights, batch.home, tables)
        self.num_rows = int(self.assignment.row_offsets[-1])
        self.row_slots = self.assignment.row_slots[: self.num_rows]
        self.row_weights = self.assignment.row_weights[: self.num_rows]
        self.groups: SlotGroups = group_by_slot(self.row_slots, 0, tables.num_physical_experts, ALIGNMENT)
        self.num_places = int(self.groups.slot_offsets[-1])
        self.rows = dispatch(batch.hidden, self.assignment.token_rows, self.num_rows)
        self.products = dispatch(self.rows, self.groups.positions, self.num_places)
        T, K = batch.index.shape
        # Every pair a place of its own, in slot order: what engines without de-duplication move.
        flat = group_by_slot(self.assignment.pair_slot, 0, tables.num_physical_experts)
        self.pair_positions = flat.positions
        self.source_of_place = torch.empty(T * K, dtype=torch.int64, device=batch.hidden.device)
        self.source_of_place[flat.positions.flatten().long()] = torch.arange(T * K, device=batch.hidden.device) // K
        self.pair_rows = dispatch(batch.hidden, flat.positions, T * K)
        self.sorted_pairs = sort_pairs(batch.index, batch.weights.to(batch.hidden.dtype), tables.num_logical_experts)


def measure_shape(shape: Shape, num_tokens: int, num_ranks: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """One record per operation and implementation."""
    row_bytes = 2 * shape.hidden_size
    count = num_buffers(num_tokens * row_bytes * (1 + shape.top_k), device)
    tables = contiguous_tables(shape, num_ranks, 0, "static", device)
    prepared = [Prepared(batch, tables) for batch in random_batches(shape, num_tokens, num_ranks, count, tables.device)]
    for operation in [*_assigning(prepared, shape, num_ranks, tables), *_moving(prepared, row_bytes)]:
        timing = time_call(operation.call, count, device, capture=operation.captured)
        moved = operation.moved_bytes
        yield {
            "tokens": num_tokens,
            "operation": operation.name,
            "implementation": operation.implementation,
            **asdict(timing),
            "tb_per_s": None if moved is None else moved / timing.best_us / 1e6,
        }


def _assigning(prepared: list[Prepared], shape: Shape, num_ranks: int, tables: RoutingTables) -> Iterator[Operation]:
    replicated = contiguous_tables(shape, num_ranks, 1, "cover", tables.device)
    for name, layer in (("assign static", tables), ("assign cover", replicated)):
        for implementation, function in (("specmoe", assign), ("PyTorch reference", assign_reference)):

            def call(i: int, layer: RoutingTables = layer, function: Callable[..., Assignment] = function) -> object:
                batch = prepared[i].batch
                return function(batch.index, batch.weights, batch.home, layer)

            yield Operation(
                name=name, implementation=implementation, call=call, moved_bytes=None, captured=function is assign
            )
    slots = tables.num_physical_experts
    for implementation, group in (("specmoe", group_by_slot), ("PyTorch reference", group_by_slot_reference)):

        def call_group(i: int, group: Callable[..., SlotGroups] = group) -> object:
            return group(prepared[i].row_slots, 0, slots, ALIGNMENT)

        yield Operation(
            name="group_by_slot",
            implementation=implementation,
            call=call_group,
            moved_bytes=None,
            captured=group is group_by_slot,
        )
    yield Operation(
        name="assign and group_by_slot",
        implementation="specmoe",
        call=lambda i: _assign_and_group(prepared[i], tables),
        moved_bytes=None,
    )
    yield Operation(
        name="assign and group_by_slot",
        implementation="transformers' sort",
        call=lambda i: sort_pairs(prepared[i].batch.index, prepared[i].batch.weights, shape.num_experts),
        moved_bytes=None,
    )


def _assign_and_group(prepared: Prepared, tables: RoutingTables) -> SlotGroups:
    batch = prepared.batch
    assignment = assign(batch.index, batch.weights, batch.home, tables)
    slots = assignment.row_slots[: prepared.num_rows]
    return group_by_slot(slots, 0, tables.num_physical_experts, ALIGNMENT)


def _moving(prepared: list[Prepared], row_bytes: int) -> Iterator[Operation]:
    tokens, top_k = prepared[0].batch.index.shape
    pairs = tokens * top_k
    rows = {"tokens": tokens, "rows": prepared[0].num_rows, "pairs": pairs}
    for implementation, move, add in (
        ("specmoe", dispatch, combine),
        ("PyTorch reference", dispatch_reference, combine_reference),
    ):
        for name, (source, target, call) in (_dispatches(move, pairs) | _combines(add)).items():
            yield Operation(
                name=name,
                implementation=implementation,
                call=lambda i, call=call: call(prepared[i]),
                moved_bytes=(rows[source] + rows[target]) * row_bytes,
                captured=move is dispatch,
            )
    for name, implementation, plain in _TORCH:
        yield Operation(
            name=name,
            implementation=implementation,
            call=lambda i, plain=plain: plain(prepared[i]),
            moved_bytes=(pairs + tokens) * row_bytes,
        )


# What is read and what is written, and the work.
Move = tuple[str, str, Callable[[Prepared], object]]


def _dispatches(move: Callable[..., torch.Tensor], pairs: int) -> dict[str, Move]:
    return {
        PERMUTE: ("tokens", "pairs", lambda p: move(p.batch.hidden, p.pair_positions, pairs)),
        "dispatch, a row per rank": (
            "tokens",
            "rows",
            lambda p: move(p.batch.hidden, p.assignment.token_rows, p.num_rows),
        ),
        "expand": ("rows", "pairs", lambda p: move(p.rows, p.groups.positions, p.num_places)),
    }


def _combines(add: Callable[..., torch.Tensor]) -> dict[str, Move]:
    return {
        UNPERMUTE: ("pairs", "tokens", lambda p: add(p.pair_rows, p.pair_positions, p.batch.weights)),
        "combine of a rank": ("pairs", "rows", lambda p: add(p.products, p.groups.positions, p.row_weights)),
        "combine of the ranks' rows": ("rows", "tokens", lambda p: add(p.rows, p.assignment.token_rows, None)),
    }


PERMUTE = "permute, a row per pair"
UNPERMUTE = "unpermute, a row per pair"
_TORCH: list[tuple[str, str, Callable[[Prepared], object]]] = [
    (PERMUTE, "torch index_select", lambda p: p.batch.hidden.index_select(0, p.source_of_place)),
    (PERMUTE, "transformers", lambda p: permute(p.batch.hidden, p.sorted_pairs, p.batch.index.shape[1])),
    (
        UNPERMUTE,
        "torch index_add_",
        lambda p: torch.zeros_like(p.batch.hidden).index_add_(0, p.source_of_place, p.pair_rows),
    ),
    (UNPERMUTE, "transformers", lambda p: unpermute(p.pair_rows, p.sorted_pairs, p.batch.index.shape[1])),
]
