"""Batches: every request once, few shapes, little padding, within the budget."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest

from specmoe.profiler.batches import make_batches, padded_length
from specmoe.profiler.request_stream import Request


def requests(lengths: list[int]) -> list[Request]:
    return [
        Request(index=index, domain_id=0, token_ids=np.full(length, index, dtype=np.int32))
        for index, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("batch_tokens", [1, 100, 1000])
def test_every_request_comes_once_and_batches_keep_the_budget(batch_tokens: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 200).tolist()
    batches = list(make_batches(requests(lengths), batch_tokens, 300))
    seen = sorted(request.index for batch in batches for request in batch.requests)
    assert seen == list(range(200))
    for batch in batches:
        assert len(batch.requests) == 1 or batch.mask.size <= batch_tokens
        assert batch.input_ids[batch.mask].tolist() == batch.token_ids.tolist()
        assert batch.input_ids.shape == (len(batch.requests), batch.padded_length)


def most_alive(num_requests: int) -> int:
    """How many requests exist at most while batches of a stream of them are made and let go of."""
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def stream() -> Iterator[Request]:
        nonlocal alive, most
        for request in (requests([10 + index % 7])[0] for index in range(num_requests)):
            weakref.finalize(request, gone)
            alive += 1
            most = max(most, alive)
            yield request

    for _ in make_batches(stream(), 64, 300):
        pass
    return most


def test_no_more_requests_are_held_however_many_there_are() -> None:
    assert most_alive(3000) == most_alive(1000) < 500


def test_lengths_are_rounded_to_few_sizes_and_not_by_much() -> None:
    rounded = [padded_length(length, 2048) for length in range(1, 2049)]
    assert len(set(rounded)) <= 28
    assert all(length <= size <= max(16, 1.25 * length + 16) for length, size in enumerate(rounded, start=1))
    assert padded_length(90, 91) == 91
