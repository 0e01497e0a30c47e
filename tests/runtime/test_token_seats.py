"""Seats are those that `evaluate` assumes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.placement.homes import seat_tokens as expected_seats
from specmoe.runtime.token_seats import seat_tokens, slice_sizes


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 6), st.integers(1, 4))
def test_seats_are_those_of_a_replayed_trace(seed, num_tokens, ep_size, levels):
    rng = np.random.default_rng(seed)
    wanted = rng.integers(-1, ep_size, num_tokens)
    confidence = (rng.integers(0, levels, num_tokens) / levels).astype(np.float16)
    expected = expected_seats(wanted.astype(np.int16), confidence, ep_size)
    seats = seat_tokens(torch.tensor(wanted), torch.tensor(confidence), ep_size)
    assert seats.tolist() == expected.tolist()
    assert torch.bincount(seats, minlength=ep_size).tolist() == slice_sizes(num_tokens, ep_size)


@pytest.mark.parametrize("ep_size", [3, 4])
def test_more_tokens_than_a_batch_are_dealt_out_batch_by_batch(ep_size):
    rng = np.random.default_rng(0)
    wanted, confidence = rng.integers(-1, ep_size, 9000), rng.random(9000).astype(np.float16)
    seats = seat_tokens(torch.tensor(wanted), torch.tensor(confidence), ep_size)
    assert seats.tolist() == expected_seats(wanted.astype(np.int16), confidence, ep_size).tolist()
    assert torch.bincount(seats, minlength=ep_size).tolist() == slice_sizes(9000, ep_size)
