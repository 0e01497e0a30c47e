"""Recorders of parts of a corpus, put together, are the recorder of the whole; and memory has a bound."""

import tracemalloc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.profiler import token_count_builder
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_recorder import RoutingRecorder

L, E, K = 2, 8, 3
NUM_REQUESTS = 24


def new_recorder(sample_tokens: int) -> RoutingRecorder:
    return RoutingRecorder(
        layer_ids=range(L),
        num_logical_experts=E,
        top_k=K,
        sample_tokens=sample_tokens,
        seed=7,
        domains=["a", "b"],
        keeps_phases=True,
    )


def record(recorder: RoutingRecorder, *indices: int, num_tokens: int | None = None) -> None:
    """Record the requests `indices` as one batch; a request is always the same."""
    made = [request_of(index, num_tokens) for index in indices]
    requests = [request for request, _, _ in made]
    ids, weights = (np.concatenate([parts[at] for parts in made]) for at in (1, 2))
    offered = recorder.wanted(requests)
    rows = np.repeat(offered, [len(request.token_ids) for request in requests])
    recorder.add(requests, ids, weights[rows], offered)


def request_of(index: int, num_tokens: int | None) -> tuple[Request, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    length = num_tokens or int(rng.integers(2, 40))
    tokens = np.minimum(rng.geometric(0.1, length), 60).astype(np.int32)
    request = Request(index=index, domain_id=index % 2, token_ids=tokens, num_generated=int(rng.integers(0, length)))
    ids = rng.random((length, L, E)).argsort(axis=-1)[..., :K].astype(np.uint8)
    return request, ids, rng.random(ids.shape).astype(np.float16)


def finished(recorder: RoutingRecorder) -> RoutingProfile:
    return recorder.finish(vocab_size=100, num_expert_groups=1, model_fingerprint="m", source="s")


@settings(deadline=None, max_examples=40)
@given(
    owners=st.lists(st.integers(0, 3), min_size=NUM_REQUESTS, max_size=NUM_REQUESTS),
    order=st.permutations(range(NUM_REQUESTS)),
    sample_tokens=st.sampled_from([40, 100, 300, 10_000]),
)
def test_any_split_of_the_requests_gives_the_same_profile(
    owners: list[int], order: list[int], sample_tokens: int
) -> None:
    whole = new_recorder(sample_tokens)
    parts = [new_recorder(sample_tokens) for _ in range(4)]
    for index in range(NUM_REQUESTS):
        record(whole, index)
    for index in order:
        record(parts[owners[index]], index)
    merged = new_recorder(sample_tokens)
    for recorder in parts:
        merged.merge(recorder.state())
    assert finished(merged).fingerprint == finished(whole).fingerprint


def test_a_recorder_goes_on_from_its_state() -> None:
    whole, first, second = new_recorder(100), new_recorder(100), new_recorder(100)
    for index in range(NUM_REQUESTS):
        record(whole, index)
        record(first, index) if index < 10 else None
    second.merge({name: array.copy() for name, array in first.state().items()})
    for index in range(10, NUM_REQUESTS):
        record(second, index)
    assert finished(second).fingerprint == finished(whole).fingerprint


def test_the_counts_of_domains_and_phases_are_those_of_their_tokens() -> None:
    recorder = new_recorder(10_000)
    for index in range(NUM_REQUESTS):
        record(recorder, index)
    profile = finished(recorder)
    sample, domains, decode = profile.sample, profile.domains, profile.decode
    assert sample is not None
    assert domains is not None
    assert decode is not None
    one_hot = np.eye(E, dtype=np.int64)[sample.expert_ids].sum(axis=2)
    assert domains.names == ("a", "b")
    for domain in range(2):
        own = sample.domain_ids == domain
        assert domains.num_tokens[domain] == own.sum()
        np.testing.assert_array_equal(domains.expert_counts[domain], one_hot[own].sum(axis=0))
    own = sample.phases == 1
    assert decode.num_tokens == own.sum() > 0
    np.testing.assert_array_equal(decode.expert_counts, one_hot[own].sum(axis=0))
    np.testing.assert_array_equal(decode.coactivation_counts, np.einsum("tli,tlj->lij", one_hot[own], one_hot[own]))


def peak_bytes(num_requests: int) -> int:
    recorder = new_recorder(2_000)
    tracemalloc.start()
    for start in range(0, num_requests, 20):
        record(recorder, *range(start, start + 20), num_tokens=64)
    recorder.state()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_count_builder.TokenCountBuilder.__init__, "__kwdefaults__", {"block_bytes": 4096})
    peak_bytes(20)  # compiles what it runs, which takes memory of its own
    few, many = peak_bytes(500), peak_bytes(2500)
    assert many < 1.3 * few
    assert few > 2_000 * L * K * 3, "less than the sample that it holds: nothing was measured"


def test_a_request_in_the_sample_does_not_keep_its_batch_in_memory() -> None:
    recorder = new_recorder(50)
    short, long = request_of(0, 40), request_of(1, 60)
    ids, weights = np.concatenate([short[1], long[1]]), short[2].copy()
    batch = [weakref.ref(ids), weakref.ref(weights)]
    requests = [short[0], long[0]]
    assert recorder.wanted(requests).tolist() == [True, False]
    recorder.add(requests, ids, weights, recorder.wanted(requests))
    del ids, weights
    recorder.state()  # counts by token id what was put off until there is a block of it
    assert [array() for array in batch] == [None, None]


def test_a_request_in_the_sample_does_not_keep_the_state_that_it_came_in() -> None:
    recorder, other = new_recorder(50), new_recorder(50)
    record(other, 0, num_tokens=40)
    state = {name: array.copy() for name, array in other.state().items()}
    arrays = [weakref.ref(state[f"sample.{name}"]) for name in ("token_ids", "expert_ids", "gate_weights")]
    recorder.merge(state)
    del state
    assert [array() for array in arrays] == [None] * 3
