"""The sample of requests: uniform, within the budget, the same from a stream as from a list."""

import numpy as np
import pytest

from specmoe.profiler.request_sample import RequestReservoir, choose_requests

LENGTHS = np.random.default_rng(0).integers(1, 60, 500)


@pytest.mark.parametrize("budget", [10, 100, 1000, 10**6])
def test_a_stream_in_any_order_draws_what_a_list_draws(budget: int) -> None:
    chosen = choose_requests(LENGTHS, budget, seed=5)
    assert LENGTHS[chosen].sum() <= budget
    for order in (np.arange(500), np.random.default_rng(1).permutation(500)):
        reservoir: RequestReservoir[int] = RequestReservoir(budget, seed=5)
        for index in order.tolist():
            reservoir.add(index, int(LENGTHS[index]), index * 2)
        assert list(reservoir.finish().items()) == [(index, index * 2) for index in chosen.tolist()]


@pytest.mark.parametrize("budget", [60, 100, 1000])
def test_reservoirs_of_parts_draw_together_what_one_draws(budget: int) -> None:
    chosen = choose_requests(LENGTHS, budget, seed=5)
    parts: list[RequestReservoir[int]] = [RequestReservoir(budget, seed=5) for _ in range(3)]
    for index in range(500):
        parts[index % 3].add(index, int(LENGTHS[index]), index)
    merged: RequestReservoir[int] = RequestReservoir(budget, seed=5)
    for part in parts:
        merged.lower_threshold(part.threshold)
        for index in part.finish():
            merged.add(index, int(LENGTHS[index]), index)
    assert list(merged.finish()) == chosen.tolist()


def test_everything_is_taken_where_it_fits() -> None:
    assert choose_requests(LENGTHS, int(LENGTHS.sum()), seed=0).tolist() == list(range(500))


def test_requests_are_drawn_alike_whatever_their_length_and_place() -> None:
    lengths = np.tile([1, 20], 50)
    hits = np.zeros(100)
    for seed in range(400):
        hits[choose_requests(lengths, 300, seed)] += 1
    share = hits / 400
    # 300 of 1,050 tokens; a share's standard deviation is 0.023, and 0.0032 over 50 requests.
    assert np.all(np.abs(share - 0.28) < 0.11)
    assert abs(share[::2].mean() - share[1::2].mean()) < 0.03


def test_a_request_longer_than_the_budget_is_left_out() -> None:
    assert choose_requests(np.array([50, 3, 4]), 10, seed=0).tolist() == [1, 2]
    reservoir: RequestReservoir[None] = RequestReservoir(10, seed=0)
    assert not reservoir.wants(0, 50)
