"""How far other requests' cost lies from the expected one, against requests drawn afresh."""

import numpy as np
import pytest

from specmoe.placement.homes import assign_requests
from specmoe.placement.solvers.cost_spread import cost_spread, redrawn_costs


def requests(rng, count=60, ranks=4):
    """Pulls, lengths and costs by home of requests that mostly know where they are cheap."""
    cost = rng.exponential(size=(count, 1)) * (0.5 + rng.random((count, ranks)))
    lengths = rng.integers(20, 400, size=count)
    return (rng.normal(size=cost.shape) * 0.2 - cost) * lengths[:, None], lengths, cost


def cost_of(pull, lengths, cost):
    return np.average(cost[np.arange(len(lengths)), assign_requests(lengths, pull)], weights=lengths)


def test_two_draws_of_requests_lie_within_the_spread_of_each_other_in_19_of_20_cases():
    rng = np.random.default_rng(0)
    apart = np.array([cost_of(*requests(rng)) / cost_of(*requests(rng)) - 1 for _ in range(400)])
    spreads = [cost_spread(redrawn_costs(*requests(rng), seed)) for seed in range(40)]
    assert np.mean(np.abs(apart) <= np.mean(spreads)) == pytest.approx(0.95, abs=0.03)


def test_requests_that_cost_the_same_everywhere_leave_nothing_open():
    pull, lengths, _ = requests(np.random.default_rng(0))
    assert cost_spread(redrawn_costs(pull, lengths, np.ones_like(pull), 0)) == pytest.approx(0.0, abs=1e-9)
    assert cost_spread(np.zeros(3)) == 0.0
