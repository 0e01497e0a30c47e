"""A request keeps its home rank from its first forward pass to its last."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from specmoe.runtime.homes import BatchHomes
from specmoe.runtime.workers import Workers

CPU = torch.device("cpu")


@pytest.fixture
def homes(random_plan):
    """Token id r pulls its request to rank r."""
    plan = random_plan(np.random.default_rng(0), num_experts=8, ranks_per_node=(4,), top_k=2)
    pulling = replace(plan, token_affinity=np.eye(4, dtype=np.float16))
    return BatchHomes(pulling, Workers(ep_size=4, process=0, world_size=1, device=CPU))


def test_requests_go_where_their_first_tokens_pull_them_and_stay(homes):
    homes.begin_forward(torch.tensor([[2, 2], [0, 0]]), 2, is_start=True)
    assert homes.of_tokens(0, 4).tolist() == [2, 2, 0, 0]
    homes.begin_forward(torch.tensor([[1], [3]]), 2, is_start=False)
    assert homes.of_tokens(0, 2).tolist() == [2, 0]


def test_the_next_batch_is_placed_anew(homes):
    homes.begin_forward(torch.tensor([[2, 2], [0, 0]]), 2, is_start=True)
    homes.begin_forward(torch.tensor([[1], [3]]), 2, is_start=True)
    assert homes.of_tokens(0, 2).tolist() == [1, 3]


def test_pinned_requests_go_where_they_are_told(homes):
    homes.pin([3, 1])
    homes.begin_forward(torch.tensor([[2], [0]]), 2, is_start=True)
    assert homes.of_tokens(0, 2).tolist() == [3, 1]
    homes.pin(None)
    homes.begin_forward(torch.tensor([[2], [0]]), 2, is_start=True)
    assert homes.of_tokens(0, 2).tolist() == [2, 0]


def test_a_layer_called_by_itself_has_one_home(homes):
    homes.begin_forward(torch.tensor([[2], [0]]), 2, is_start=True)
    assert homes.of_tokens(0, 3).tolist() == [0, 0, 0]
