"""Limit a batch's pairs before they are dispatched (Capacity-Aware Inference, on the source rank, for any placement).

Each home rank limits its own tokens' pairs, so nothing must be exchanged. Level "expert" limits before the serving
ranks are chosen, so that `cover` chooses for what is left; level "device" limits what the chosen ranks are sent.
"""

import torch

from specmoe.errors import UsageError
from specmoe.kernels.capacity.capacity import CapacityLimits, LimitedPairs
from specmoe.kernels.capacity.reference import ReferenceSteps
from specmoe.kernels.capacity.steps import Steps
from specmoe.kernels.checks import FLOATS, check_argument, check_values
from specmoe.kernels.routing_tables import RoutingTables

# A pair that one expert of its home rank refuses is offered to the next best with room, so many times in all.
REROUTE_ROUNDS = 4


def limit_pairs(
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    home_rank: torch.Tensor,
    tables: RoutingTables,
    capacity: CapacityLimits,
) -> LimitedPairs:
    """Choose the slot of every pair that `capacity` lets through; the arguments are those of `assign`.

    Surviving weights are as they were, not normalised again. Deterministic; nothing waits for the device. Raises
    `UsageError` for a wrong shape, dtype, device or layout. `assign_slots` makes rows of the result.
    """
    _check(top_k_index, top_k_weights, home_rank, tables, capacity)
    return limit_with(_steps(tables.device), top_k_index, top_k_weights, home_rank, tables, capacity)


def limit_with(
    steps: Steps,
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    home_rank: torch.Tensor,
    tables: RoutingTables,
    capacity: CapacityLimits,
) -> LimitedPairs:
    """As `limit_pairs`, for checked arguments, by the given steps."""
    limits = capacity.limits.clamp(min=0)
    by_expert = capacity.level == "expert"
    slot = torch.full_like(top_k_index, -1) if by_expert else steps.choose_slots(top_k_index, home_rank, tables)
    target = top_k_index if by_expert else tables.rank_of_slot[slot.long()]
    group = (home_rank[:, None] * limits.shape[1] + target).to(torch.int32)
    selection = steps.keep_best(group, _keys(capacity.scores, capacity.priority), limits.flatten())
    demand = selection.demand.view_as(limits)
    expert = torch.where(selection.kept, top_k_index, -1).to(torch.int32)
    weights = top_k_weights.to(torch.float32)
    rerouted = torch.full_like(expert, -1)
    if capacity.overflow == "reroute" and capacity.router_scores is not None:
        room = limits - torch.minimum(demand, limits)
        rerouted = _reroute(steps, top_k_index, expert, home_rank, tables, capacity, capacity.router_scores, room)
        weights = torch.where(rerouted >= 0, _at(capacity.router_scores, rerouted), weights)
        slot = torch.where(rerouted >= 0, _own_slot(tables, home_rank, rerouted), slot)
        expert = torch.where(rerouted >= 0, rerouted, expert)
    if by_expert:
        slot = steps.choose_slots(expert, home_rank, tables)
    slot = torch.where(expert >= 0, slot, -1).to(torch.int32)
    return LimitedPairs(pair_slot=slot, weights=weights, rerouted=rerouted >= 0, demand=demand)


def _reroute(
    steps: Steps,
    top_k_index: torch.Tensor,
    expert: torch.Tensor,
    home_rank: torch.Tensor,
    tables: RoutingTables,
    capacity: CapacityLimits,
    router_scores: torch.Tensor,
    room: torch.Tensor,
) -> torch.Tensor:
    """int32 [T, K]: the expert of its home rank that takes a pair over, -1 for the pairs that nobody takes over."""
    holds = tables.slot_on_rank >= 0
    by_expert = capacity.level == "expert"
    # On its home rank an expert has room of its own, or shares the rank's.
    room = room if by_expert else room.diagonal()[:, None]
    rerouted = torch.full_like(expert, -1)
    for _ in range(REROUTE_ROUNDS if by_expert else 1):
        wants = (expert < 0) & (rerouted < 0)
        taken = torch.cat([top_k_index.to(torch.int32), rerouted], dim=1)
        candidate = steps.nominate(wants, router_scores, taken, holds & (room > 0), home_rank)
        column = candidate if by_expert else 0
        group = torch.where(candidate >= 0, home_rank[:, None] * room.shape[1] + column, -1).to(torch.int32)
        key = _keys(_at(router_scores, candidate), capacity.priority)
        selection = steps.keep_best(group, key, room.flatten())
        rerouted = torch.where(selection.kept & (candidate >= 0), candidate, rerouted)
        room = room - torch.minimum(selection.demand.view_as(room), room)
    return rerouted


def _sortable(scores: torch.Tensor) -> torch.Tensor:
    """int64 of the same shape, ordered as the float32 `scores` are; the two zeros are one, NaN is below all."""
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32).long()
    return torch.where(scores.isnan(), 1 - 2**31, torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits))


def _keys(scores: torch.Tensor, priority: torch.Tensor | None) -> torch.Tensor:
    """int64 [T, K]: priority first, then score."""
    key = _sortable(scores)
    return key if priority is None else key + (_sortable(priority) << 32)[:, None]


def _at(scores: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    return scores.gather(1, expert.clamp(min=0).long())


def _own_slot(tables: RoutingTables, home_rank: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    return tables.slot_on_rank[home_rank.long()[:, None], expert.clamp(min=0).long()]


def _steps(device: torch.device) -> Steps:
    if device.type == "cuda":
        from specmoe.kernels.capacity.fused import FusedSteps

        return FusedSteps()
    return ReferenceSteps()


def _check(
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
    home_rank: torch.Tensor,
    tables: RoutingTables,
    capacity: CapacityLimits,
) -> None:
    device, E, R = tables.device, tables.num_logical_experts, tables.ep_size
    columns = {"expert": E, "device": R}
    if capacity.level not in columns:
        raise UsageError(f"the capacity's level is {capacity.level!r}, 'expert' or 'device' was expected")
    if capacity.overflow not in ("drop", "reroute"):
        raise UsageError(f"the capacity's overflow is {capacity.overflow!r}, 'drop' or 'reroute' was expected")
    check_argument("top_k_index", top_k_index, (torch.int64, torch.int32), (-1, -1), device)
    T, K = top_k_index.shape
    check_argument("top_k_weights", top_k_weights, FLOATS, (T, K), device)
    check_argument("limits", capacity.limits, (torch.int32,), (R, columns[capacity.level]), device)
    check_argument("scores", capacity.scores, (torch.float32,), (T, K), device)
    check_argument("home_rank", home_rank, (torch.int32,), (T,), device)
    check_values("top_k_index", top_k_index, 0, E)
    check_values("home_rank", home_rank, 0, R)
    if capacity.priority is not None:
        check_argument("priority", capacity.priority, (torch.float32,), (T,), device)
    if capacity.overflow == "reroute":
        if capacity.router_scores is None:
            raise UsageError("rerouting needs router_scores, how much each token wants each expert; none were given")
        check_argument("router_scores", capacity.router_scores, (torch.float32,), (T, E), device)
