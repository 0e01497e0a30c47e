"""The steps of limiting in Triton."""

import torch

from specmoe.kernels.assign.choose_fused import choose_slots_fused
from specmoe.kernels.capacity.keep_best import keep_best_op
from specmoe.kernels.capacity.nominate import nominate_op
from specmoe.kernels.capacity.steps import Selection
from specmoe.kernels.routing_tables import RoutingTables


class FusedSteps:
    """`Steps` by kernels, with the same results as the reference's."""

    def choose_slots(self, expert: torch.Tensor, home_rank: torch.Tensor, tables: RoutingTables) -> torch.Tensor:
        return choose_slots_fused(expert, home_rank, tables)

    def keep_best(self, group: torch.Tensor, key: torch.Tensor, limits: torch.Tensor) -> Selection:
        kept, demand = keep_best_op(group, key, limits)
        return Selection(kept=kept, demand=demand)

    def nominate(
        self,
        wants: torch.Tensor,
        scores: torch.Tensor,
        taken: torch.Tensor,
        is_open: torch.Tensor,
        home_rank: torch.Tensor,
    ) -> torch.Tensor:
        candidate: torch.Tensor = nominate_op(wants, scores, taken, is_open, home_rank)
        return candidate
