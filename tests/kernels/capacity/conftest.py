"""Random layers and tokens to limit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from specmoe.kernels.capacity.capacity import CapacityLimits
from specmoe.kernels.routing_tables import RoutingTables


class LimitCase:
    """A random layer with replicas, T tokens with coarse scores (so that there are ties), and limits for them."""

    def __init__(
        self, random_plan, *, seed, nodes, num_experts, top_k, num_tokens, choice, level, overflow, with_priority, most
    ):
        rng = np.random.default_rng(seed)
        plan = random_plan(
            rng, num_experts=num_experts, ranks_per_node=nodes, top_k=top_k, extra_slots=1, replica_choice=choice
        )
        self.tables = RoutingTables.of_layer(plan, 0, torch.device("cpu"))
        R = plan.ep_size
        router_scores = torch.tensor(rng.integers(0, 6, (num_tokens, num_experts)) / 8, dtype=torch.float32)
        # The first expert is hot, so that limits bite.
        router_scores[:, 0] += torch.tensor(rng.integers(0, 2, num_tokens), dtype=torch.float32)
        self.weights, self.index = (tensor.contiguous() for tensor in router_scores.topk(top_k, dim=1))
        self.home = torch.tensor(rng.integers(0, R, num_tokens), dtype=torch.int32)
        columns = num_experts if level == "expert" else R
        self.capacity = CapacityLimits(
            level=level,
            overflow=overflow,
            limits=torch.tensor(rng.integers(-1, most + 1, (R, columns)), dtype=torch.int32),
            scores=self.weights,
            priority=torch.tensor(rng.integers(-1, 2, num_tokens), dtype=torch.float32) if with_priority else None,
            router_scores=router_scores,
        )


@pytest.fixture(scope="session")
def limit_case(random_plan: Callable[..., object]) -> Callable[..., LimitCase]:
    """`limit_case(seed=..., ...)`: a `LimitCase`."""
    return lambda **options: LimitCase(random_plan, **options)
