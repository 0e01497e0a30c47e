"""Routing profiles: what comes back from a file, and every rule that a damaged or foreign one breaks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.artifact import read_artifact, write_artifact
from specmoe.errors import ArtifactError
from specmoe.profiler.domain_counts import DomainCounts
from specmoe.profiler.phase_counts import DecodeCounts
from specmoe.profiler.routing_profile import PROFILE_FORMAT, RoutingProfile, RoutingSample
from specmoe.profiler.token_counts import TokenExpertCounts

L, E, K = 2, 3, 2


def counts_of_tokens() -> TokenExpertCounts:
    return TokenExpertCounts(
        token_ids=np.array([4, 9], dtype=np.int32),
        row_offsets=np.array([0, 2, 4, 5, 7], dtype=np.int64),
        expert_ids=np.array([0, 1, 1, 2, 0, 0, 2], dtype=np.uint16),
        counts=np.array([1, 1, 2, 2, 3, 1, 1], dtype=np.int64),
    )


def small_sample(**changes: Any) -> RoutingSample:
    sample = RoutingSample(
        expert_ids=np.array([[[0, 1], [0, 2]], [[1, 2], [2, 0]], [[2, 1], [1, 0]]], dtype=np.uint8),
        gate_weights=np.full((3, L, K), 0.5, dtype=np.float16),
        token_ids=np.array([4, 9, 9], dtype=np.int32),
        request_ids=np.array([7, 7, 3], dtype=np.int32),
        positions=np.array([0, 1, 0], dtype=np.int32),
        domain_ids=np.array([0, 0, 1], dtype=np.int16),
    )
    return replace(sample, **changes)


def small_profile(**changes: Any) -> RoutingProfile:
    expert_counts = np.array([[1, 3, 2], [3, 1, 2]], dtype=np.int64)
    coactivation_counts = np.stack([np.diag(row) for row in expert_counts])
    profile = RoutingProfile(
        layer_ids=np.array([1, 2], dtype=np.int32),
        expert_counts=expert_counts,
        coactivation_counts=coactivation_counts,
        transition_counts=np.ones((L - 1, E, E), dtype=np.int64),
        sample=small_sample(),
        token_counts=counts_of_tokens(),
        num_logical_experts=E,
        top_k=K,
        num_tokens=3,
        vocab_size=10,
        model_fingerprint="abc",
        source="by hand",
    )
    return replace(profile, **changes)


def test_a_saved_profile_comes_back_whole(tmp_path: Path) -> None:
    profile = small_profile()
    profile.save(str(tmp_path / "p"))
    loaded = RoutingProfile.load(str(tmp_path / "p"))
    assert loaded.fingerprint == profile.fingerprint
    assert (loaded.num_tokens, loaded.vocab_size, loaded.model_fingerprint) == (3, 10, "abc")
    assert loaded.sample is not None
    assert loaded.token_counts is not None
    np.testing.assert_array_equal(loaded.sample.expert_ids, small_sample().expert_ids)
    np.testing.assert_array_equal(loaded.token_counts.counts, counts_of_tokens().counts)


def decode_counts() -> DecodeCounts:
    one_token = np.array([[1, 1, 0], [0, 1, 1]], dtype=np.int64)
    return DecodeCounts(
        num_tokens=1,
        expert_counts=one_token,
        coactivation_counts=np.einsum("li,lj->lij", one_token, one_token),
        transition_counts=np.zeros((L - 1, E, E), dtype=np.int64),
        token_counts=counts_of_tokens(),
    )


def domain_counts() -> DomainCounts:
    expert_counts = small_profile().expert_counts
    first = np.minimum(expert_counts, 1)
    return DomainCounts(
        names=("chat", "code"),
        num_tokens=np.array([1, 2], dtype=np.int64),
        expert_counts=np.stack([first, expert_counts - first]),
    )


def test_phases_domains_and_what_a_run_missed_come_back(tmp_path: Path) -> None:
    sample = small_sample(phases=np.array([0, 1, 0], dtype=np.int8))
    profile = small_profile(
        sample=sample, decode=decode_counts(), domains=domain_counts(), seen_share=0.25, too_long_requests=3
    )
    profile.save(tmp_path / "p")
    loaded = RoutingProfile.load(tmp_path / "p")
    assert loaded.fingerprint == profile.fingerprint
    assert (loaded.seen_share, loaded.too_long_requests) == (0.25, 3)
    assert loaded.sample is not None
    assert loaded.decode is not None
    assert loaded.domains is not None
    assert loaded.sample.phases.tolist() == [0, 1, 0]
    assert (loaded.decode.num_tokens, loaded.domains.names) == (1, ("chat", "code"))
    np.testing.assert_array_equal(loaded.decode.coactivation_counts, decode_counts().coactivation_counts)
    np.testing.assert_array_equal(loaded.decode.token_counts.counts, counts_of_tokens().counts)
    np.testing.assert_array_equal(loaded.domains.expert_counts, domain_counts().expert_counts)


def test_what_is_not_there_does_not_change_the_description(tmp_path: Path) -> None:
    small_profile().save(tmp_path / "p")
    description = read_artifact(tmp_path / "p", PROFILE_FORMAT)[1]
    assert not {"domains", "seen_share", "too_long_requests", "num_decode_tokens"} & description.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seen_share": 1.5}, "seen_share is 1.5"),
        ({"sample": small_sample(phases=np.array([0, 2, 0], dtype=np.int8))}, "sample.phases has values from 0 to 2"),
        ({"sample": small_sample(phases=np.zeros(2, dtype=np.int8))}, "sample.phases has shape"),
        ({"decode": replace(decode_counts(), expert_counts=np.zeros((1, E), dtype=np.int64))}, "decode.expert_counts"),
        ({"domains": replace(domain_counts(), names=("one",))}, "domains.num_tokens has shape"),
        (
            {"domains": replace(domain_counts(), expert_counts=np.zeros((2, L, E), dtype=np.int64))},
            "sum of domains.expert_counts",
        ),
    ],
)
def test_each_misfit_of_phases_and_domains_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        small_profile(**changes)


def test_a_counts_only_profile_comes_back_and_says_what_it_lacks(tmp_path: Path) -> None:
    bare = small_profile(sample=None, token_counts=None, coactivation_counts=None, transition_counts=None)
    bare.save(tmp_path / "p")
    loaded = RoutingProfile.load(tmp_path / "p")
    assert loaded.sample is None
    with pytest.raises(ArtifactError, match="solving needs the routing of single tokens"):
        loaded.require_sample("solving")


def test_the_fingerprint_follows_the_content() -> None:
    assert small_profile().fingerprint == small_profile().fingerprint
    assert small_profile(num_tokens=4).fingerprint != small_profile().fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 4}, "top-4 is not possible"),
        ({"layer_ids": np.array([2, 1], dtype=np.int32)}, "layer_ids must increase"),
        ({"layer_ids": np.array([-1, 1], dtype=np.int32)}, "layer_ids has values from -1 to 1"),
        ({"expert_counts": np.zeros((L, E), dtype=np.int32)}, "tensor expert_counts is int32"),
        ({"expert_counts": np.full((L, E), -1)}, "values from -1 to -1"),
        ({"coactivation_counts": np.zeros((L, E, E), dtype=np.int64)}, "diagonal of coactivation_counts"),
        ({"transition_counts": np.zeros((L, E, E), dtype=np.int64)}, "tensor transition_counts has shape"),
        ({"vocab_size": -5}, "vocab_size is -5, at least 1"),
        ({"num_expert_groups": 2}, "num_expert_groups is 2, a divisor of the 3 experts"),
        ({"vocab_size": 9}, "sample.token_ids has values from 4 to 9"),
    ],
)
def test_each_misfit_of_the_profile_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        small_profile(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_ids": np.zeros((3, L, K), dtype=np.int64)}, "sample.expert_ids is int64"),
        ({"expert_ids": np.zeros((3, L, K), dtype=np.uint8)}, "names an expert twice"),
        ({"expert_ids": np.full((3, L, K), [0, 3], dtype=np.uint8)}, "values from 0 to 3"),
        ({"gate_weights": np.zeros((2, L, K), dtype=np.float16)}, "sample.gate_weights has shape"),
        ({"domain_ids": np.zeros(3, dtype=np.int32)}, "sample.domain_ids is int32"),
        ({"request_ids": np.array([7, 3, 7], dtype=np.int32)}, "splits a request"),
    ],
)
def test_each_misfit_of_the_sample_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        small_profile(sample=small_sample(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": np.array([9, 4], dtype=np.int32)}, "token_ids must increase"),
        ({"row_offsets": np.array([0, 2, 1, 5, 7], dtype=np.int64)}, "must rise from 0 to 7"),
        ({"row_offsets": np.array([0, 2, 4, 5, 8], dtype=np.int64)}, "must rise from 0 to 7"),
        ({"expert_ids": np.full(7, 3, dtype=np.uint16)}, "token_counts.expert_ids has values"),
        ({"counts": np.zeros(7, dtype=np.int64)}, "token_counts.counts has values"),
    ],
)
def test_each_misfit_of_the_token_counts_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        small_profile(token_counts=replace(counts_of_tokens(), **changes))


def test_a_missing_tensor_is_named_with_the_file(tmp_path: Path) -> None:
    small_profile(decode=decode_counts(), domains=domain_counts()).save(tmp_path / "p")
    tensors, description = read_artifact(tmp_path / "p", PROFILE_FORMAT)
    for name in ("expert_counts", "token_counts.counts", "decode.expert_counts", "domains.num_tokens"):
        rest = {key: value for key, value in tensors.items() if key != name}
        write_artifact(tmp_path / "q", rest, description, force=True)
        with pytest.raises(ArtifactError, match=f"q: tensor {name} is missing"):
            RoutingProfile.load(tmp_path / "q")
