"""The steps of limiting in plain PyTorch."""

import torch

from specmoe.kernels.assign.reference import choose_slots
from specmoe.kernels.capacity.steps import Selection
from specmoe.kernels.routing_tables import RoutingTables


class ReferenceSteps:
    """`Steps` by sorting."""

    def choose_slots(self, expert: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
        return choose_slots(expert.long(), home_rank.long(), tables)

    def keep_best(self, group: torch.Tensor, key: torch.Tensor, limits: torch.Tensor) -> Selection:
        num_groups = len(limits)
        group_of_pair = torch.where(group >= 0, group, num_groups).flatten().long()
        demand = torch.zeros(num_groups + 1, dtype=torch.int64, device=group.device)
        demand.scatter_add_(0, group_of_pair, torch.ones_like(group_of_pair))
        by_key = key.flatten().argsort(descending=True, stable=True)
        order = by_key[group_of_pair[by_key].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        rank -= (demand.cumsum(dim=0) - demand)[group_of_pair]
        limit = torch.nn.functional.pad(limits, (0, 1))[group_of_pair]
        return Selection(kept=(rank < limit).view_as(group), demand=demand[:num_groups].to(torch.int32))

    def nominate(
        self,
        wants: torch.Tensor,
        scores: torch.Tensor,
        taken: torch.Tensor,
        is_open: torch.Tensor,
        home_rank: torch.Tensor,
    ) -> torch.Tensor:
        num_experts = scores.shape[1]
        is_taken = torch.zeros((len(scores), num_experts + 1), dtype=torch.bool, device=scores.device)
        is_taken.scatter_(1, torch.where(taken >= 0, taken, num_experts).long(), True)
        free = is_open[home_rank.long()] & ~is_taken[:, :num_experts] & (scores > -torch.inf)
        order = torch.where(free, scores, -torch.inf).argsort(dim=1, descending=True, stable=True)
        nth = wants.cumsum(dim=1) - 1
        has_one = wants & (nth < free.sum(dim=1, keepdim=True))
        candidate = order.gather(1, nth.clamp(min=0, max=num_experts - 1))
        return torch.where(has_one, candidate, -1).to(torch.int32)
