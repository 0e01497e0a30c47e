"""What several engines' files and settings share: a plan's slots as plain lists, and how many ranks there are."""

from specmoe.placement.plan import PlacementPlan


def num_redundant(plan: PlacementPlan) -> int:
    """Slots past one for each expert, which the engines call redundant experts."""
    return plan.num_physical_experts - plan.num_logical_experts


def moe_rows(plan: PlacementPlan) -> list[list[int]]:
    """`physical_to_logical` as int lists [L][P], a row for each MoE layer."""
    rows: list[list[int]] = plan.physical_to_logical.tolist()
    return rows


def has_equal_blocks(plan: PlacementPlan) -> bool:
    """Whether every rank has the same number of slots."""
    return len(set((plan.slot_offsets[1:] - plan.slot_offsets[:-1]).tolist())) == 1


def vllm_ranks(plan: PlacementPlan) -> str:
    """vLLM has no flag for the expert-parallel size: it is that of the attention's data or tensor parallelism."""
    kind = "data" if plan.attention == "dp" else "tensor"
    return f"--{kind}-parallel-size {plan.ep_size}"
