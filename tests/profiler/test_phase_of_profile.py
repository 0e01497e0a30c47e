"""One phase out of a profile is what a recorder of that phase's tokens alone would have made."""

from dataclasses import fields, replace

import numpy as np
import pytest

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler.phase_of_profile import profile_of_phase
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_recorder import RoutingRecorder

L, E, K = 2, 6, 2


def recorded(requests: list[Request], routes: list[np.ndarray], *, keeps_phases: bool) -> RoutingProfile:
    recorder = RoutingRecorder(
        layer_ids=range(L),
        num_logical_experts=E,
        top_k=K,
        sample_tokens=10**6,
        seed=0,
        domains=["text", "code"],
        keeps_phases=keeps_phases,
    )
    for request, ids in zip(requests, routes, strict=True):
        recorder.add([request], ids, np.ones(ids.shape, dtype=np.float16), np.array([True]))
    return recorder.finish(vocab_size=50, num_expert_groups=1, model_fingerprint="m", source="s")


def generated_profile() -> tuple[RoutingProfile, list[Request], list[np.ndarray]]:
    """Ten requests of 3 to 8 tokens, the last one to three of them generated; token ids 40 to 49 only ever so."""
    rng = np.random.default_rng(0)
    requests, routes = [], []
    for index in range(10):
        generated, length = int(rng.integers(1, 4)), int(rng.integers(4, 9))
        tokens = rng.integers(0, 40, length).astype(np.int32)
        tokens[-generated:] = rng.integers(35, 50, generated)
        requests.append(Request(index=index, domain_id=index % 2, token_ids=tokens, num_generated=generated))
        routes.append(rng.random((length, L, E)).argsort(axis=-1)[..., :K].astype(np.uint8))
    return recorded(requests, routes, keeps_phases=True), requests, routes


def part(request: Request, ids: np.ndarray, *, prefill: bool) -> tuple[Request, np.ndarray]:
    start = len(request.token_ids) - request.num_generated
    rows = slice(0, start) if prefill else slice(start, None)
    return replace(request, token_ids=request.token_ids[rows], num_generated=0), ids[rows]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_phase_alone_has_the_counts_of_its_own_tokens(phase: str) -> None:
    whole, requests, routes = generated_profile()
    parts = [part(request, ids, prefill=phase == "prefill") for request, ids in zip(requests, routes, strict=True)]
    expected = recorded([request for request, _ in parts], [ids for _, ids in parts], keeps_phases=False)
    found = profile_of_phase(whole, phase)
    assert found.num_tokens == expected.num_tokens
    for name in ("expert_counts", "coactivation_counts", "transition_counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for field in fields(expected.token_counts):
        np.testing.assert_array_equal(
            getattr(found.token_counts, field.name), getattr(expected.token_counts, field.name)
        )
    assert found.domains is not None
    assert found.domains.names == ("text", "code")
    for name in ("num_tokens", "expert_counts"):
        np.testing.assert_array_equal(getattr(found.domains, name), getattr(expected.domains, name))
    for name in ("expert_ids", "token_ids", "request_ids"):
        np.testing.assert_array_equal(getattr(found.sample, name), getattr(expected.sample, name))
    assert found.fingerprint != whole.fingerprint


def test_decode_positions_go_on_from_the_prompt() -> None:
    whole, requests, _ = generated_profile()
    sample = profile_of_phase(whole, "decode").sample
    assert sample is not None
    expected = [p for r in requests for p in range(len(r.token_ids) - r.num_generated, len(r.token_ids))]
    assert sample.positions.tolist() == expected


def test_all_phases_are_the_profile_itself() -> None:
    whole, _, _ = generated_profile()
    assert profile_of_phase(whole, "all") is whole


def test_phases_that_were_not_kept_apart_are_refused() -> None:
    _, requests, routes = generated_profile()
    plain = recorded(requests, routes, keeps_phases=False)
    with pytest.raises(ArtifactError, match=r"the decode phase alone needs .* --generate"):
        profile_of_phase(plain, "decode")
    with pytest.raises(UsageError, match="phase is 'both'"):
        profile_of_phase(plain, "both")
