"""What makes a plan legal, read from its tensors alone: these rules know neither solvers nor the plan's own checks."""

from collections.abc import Iterator

import numpy as np

from specmoe.placement.plan import PlacementPlan


def range_violations(plan: PlacementPlan) -> Iterator[str]:
    """Shapes and values that the other rules build on."""
    L, R, E, P = plan.num_layers, plan.ep_size, plan.num_logical_experts, len(plan.rank_of_physical)
    for name, shape, limit in (
        ("rank_of_physical", (P,), R),
        ("physical_to_logical", (L, P), E),
        ("dispatch_slot", (L, R, E), P),
    ):
        tensor = getattr(plan, name)
        if tensor.shape != shape:
            yield f"{name} has shape {list(tensor.shape)}, {list(shape)} was expected"
        elif tensor.size and not (tensor.min() >= 0 and tensor.max() < limit):
            yield f"{name} has values from {tensor.min()} to {tensor.max()}, 0 to {limit - 1} was expected"
    if L > 1 and min(np.diff(plan.layer_ids)) <= 0:
        yield "layer_ids do not increase"


def slot_violations(plan: PlacementPlan, extra_slots: int | None) -> Iterator[str]:
    """Slots of a rank are consecutive, as many as the topology asks for, plus the same extra ones on every rank."""
    ranks = plan.rank_of_physical.tolist()
    if ranks != sorted(ranks):
        yield "slots of a rank are not consecutive: rank_of_physical decreases"
    has = [ranks.count(rank) for rank in range(plan.ep_size)]
    needed = plan.topology.slots_of_rank(plan.num_logical_experts, 0).tolist()
    extra = has[0] - needed[0] if extra_slots is None else extra_slots
    expected = [slots + extra for slots in needed]
    if extra < 0 or has != expected:
        yield f"the ranks have {has} slots, {expected if extra >= 0 else needed} were expected"


def expert_violations(plan: PlacementPlan) -> Iterator[str]:
    """Every expert sits in every layer somewhere, and on no rank twice."""
    everything = set(range(plan.num_logical_experts))
    for layer_id, row in zip(plan.layer_ids.tolist(), plan.physical_to_logical.tolist(), strict=True):
        missing = everything - set(row)
        if missing:
            yield f"layer {layer_id}: no slot holds the experts {sorted(missing)}"
        pairs = list(zip(plan.rank_of_physical.tolist(), row, strict=True))
        twins = sorted({pair for pair in pairs if pairs.count(pair) > 1}) if len(set(pairs)) < len(pairs) else []
        for rank, expert in twins:
            yield f"layer {layer_id}: rank {rank} holds expert {expert} more than once"


def dispatch_violations(plan: PlacementPlan) -> Iterator[str]:
    """A dispatch slot holds its expert, and is the rank's own wherever the rank has one."""
    for layer, layer_id in enumerate(plan.layer_ids.tolist()):
        held_by = [set() for _ in range(plan.ep_size)]  # type: list[set[int]]
        for rank, expert in zip(plan.rank_of_physical.tolist(), plan.physical_to_logical[layer].tolist(), strict=True):
            held_by[rank].add(expert)
        for rank, slots in enumerate(plan.dispatch_slot[layer]):
            wrong = np.flatnonzero(plan.physical_to_logical[layer, slots] != np.arange(len(slots)))
            if wrong.size:
                yield f"layer {layer_id}: rank {rank} dispatches expert {wrong[0]} to a slot of another expert"
            away = [expert for expert in sorted(held_by[rank]) if plan.rank_of_physical[slots[expert]] != rank]
            if away:
                yield f"layer {layer_id}: rank {rank} holds expert {away[0]} but dispatches it elsewhere"


def table_violations(plan: PlacementPlan, vocab_size: int | None) -> Iterator[str]:
    """Token tables belong to the attention, fit the vocabulary and hold possible values."""
    R, L, tables = plan.ep_size, plan.num_layers, (plan.token_to_rank, plan.token_confidence)
    if plan.attention == "dp" and any(table is not None for table in tables):
        yield "a plan for dp attention has a token table"
    if plan.attention == "tp" and plan.token_affinity is not None:
        yield "a plan for tp attention has a token affinity"
    if (tables[0] is None) != (tables[1] is None):
        yield "token_to_rank and token_confidence are not there together"
    named = (("token_to_rank", tables[0], 0, L), ("token_confidence", tables[1], 0, L))
    for name, table, axis, size in (*named, ("token_affinity", plan.token_affinity, 1, R)):
        if table is None:
            continue
        if table.ndim != 2 or table.shape[axis] != size:
            yield f"{name} has shape {list(table.shape)}, axis {axis} of {size} was expected"
        elif vocab_size is not None and table.shape[1 - axis] != vocab_size:
            yield f"{name} knows {table.shape[1 - axis]} token ids, the profile's vocabulary has {vocab_size}"
        elif not np.isfinite(table.astype(np.float64)).all():
            yield f"{name} has values that are not finite"
    yield from _table_ranges(plan)


def _table_ranges(plan: PlacementPlan) -> Iterator[str]:
    ranks, sure = plan.token_to_rank, plan.token_confidence
    if ranks is not None and ranks.size and not (ranks.min() >= -1 and ranks.max() < plan.ep_size):
        yield f"token_to_rank has values from {ranks.min()} to {ranks.max()}, -1 to {plan.ep_size - 1} was expected"
    if sure is not None and sure.size and not (float(sure.min()) >= 0 and float(sure.max()) <= 1):
        yield f"token_confidence has values from {sure.min()} to {sure.max()}, 0 to 1 was expected"


def group_violations(plan: PlacementPlan, expert_groups: int) -> Iterator[str]:
    """For a router limited to groups: no replicas, and every group's experts fill one group's place, in any order.

    Then the checkpoint can be renumbered: new group j is an old group, its experts permuted.
    """
    E = plan.num_logical_experts
    if E % expert_groups:
        yield f"{E} experts do not divide into {expert_groups} groups"
        return
    if plan.physical_to_logical.shape[1] != E:
        yield f"a group-limited plan has {plan.physical_to_logical.shape[1]} slots, one per expert ({E}) was expected"
        return
    size = E // expert_groups
    for layer_id, row in zip(plan.layer_ids.tolist(), plan.physical_to_logical, strict=True):
        for start in range(0, E, size):
            groups = sorted({expert // size for expert in row[start : start + size].tolist()})
            if len(groups) > 1:
                yield f"layer {layer_id}: the slots {start} to {start + size - 1} mix the expert groups {groups}"
