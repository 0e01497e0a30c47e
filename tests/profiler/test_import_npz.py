"""npz traces: what is counted and kept, and what is refused before it is believed."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler.import_npz import import_npz

T, L, E, K = 60, 2, 8, 3


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "expert_ids": rng.random((T, L, E)).argsort(axis=-1)[..., :K].astype(np.uint8),
        "num_experts": np.int64(E),
        "token_ids": rng.integers(0, 20, T).astype(np.int32),
        "request_ids": np.repeat(np.array([4, 9, 2], dtype=np.int32), 20),
        "gate_weights": rng.random((T, L, K)).astype(np.float16),
        "domain_ids": np.repeat(np.array([1, 0, 1], dtype=np.int16), 20),
        "layer_ids": np.array([1, 3], dtype=np.int32),
        "vocab_size": np.int64(25),
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


@pytest.fixture
def trace(tmp_path):
    """`trace(name=value, ...)`: the path of a good trace with some arrays changed, or left out (None)."""

    def write(**changes: Any) -> Path:
        np.savez_compressed(tmp_path / "trace.npz", **arrays(**changes))
        return tmp_path / "trace.npz"

    return write


def test_counts_are_exact_and_the_whole_trace_is_the_sample(trace) -> None:
    profile = import_npz(trace())
    given = arrays()
    one_hot = np.zeros((T, L, E), dtype=np.int64)
    np.put_along_axis(one_hot, given["expert_ids"].astype(np.int64), 1, axis=2)
    assert np.array_equal(profile.expert_counts, one_hot.sum(axis=0))
    assert np.array_equal(profile.coactivation_counts, np.einsum("tli,tlj->lij", one_hot, one_hot))
    assert np.array_equal(profile.transition_counts, np.einsum("ti,tj->ij", one_hot[:, 0], one_hot[:, 1])[None])
    assert profile.layer_ids.tolist() == [1, 3]
    assert (profile.num_tokens, profile.top_k, profile.vocab_size) == (T, K, 25)
    assert profile.sample is not None
    for name in ("expert_ids", "token_ids", "request_ids", "gate_weights", "domain_ids"):
        assert np.array_equal(getattr(profile.sample, name), given[name]), name
    assert profile.sample.positions.tolist() == [*range(20)] * 3
    assert profile.token_counts is not None
    token, expert = int(given["token_ids"][0]), int(given["expert_ids"][0, 1, 0])
    row = len(profile.token_counts.token_ids) + profile.token_counts.token_ids.tolist().index(token)
    entries = slice(profile.token_counts.row_offsets[row], profile.token_counts.row_offsets[row + 1])
    found = dict(
        zip(
            profile.token_counts.expert_ids[entries].tolist(),
            profile.token_counts.counts[entries].tolist(),
            strict=True,
        )
    )
    assert found[expert] == one_hot[given["token_ids"] == token, 1, expert].sum()


def test_scattered_requests_are_regrouped_by_first_appearance(trace) -> None:
    together = import_npz(trace()).sample
    shuffled = np.concatenate([np.arange(20, 60, 2), np.arange(0, 20), np.arange(21, 60, 2)])
    per_token = ("expert_ids", "token_ids", "request_ids", "gate_weights", "domain_ids")
    scattered = import_npz(trace(**{name: arrays()[name][shuffled] for name in per_token})).sample
    assert together is not None
    assert scattered is not None
    assert scattered.request_ids.tolist() == [9] * 20 + [2] * 20 + [4] * 20
    assert np.array_equal(scattered.expert_ids[40:], together.expert_ids[:20])
    assert scattered.positions.tolist() == [*range(20)] * 3


def test_the_smallest_trace_has_expert_ids_and_their_number(trace) -> None:
    optional = ("token_ids", "request_ids", "gate_weights", "domain_ids", "layer_ids", "vocab_size")
    profile = import_npz(trace(**dict.fromkeys(optional)))
    assert profile.layer_ids.tolist() == [0, 1]
    assert profile.vocab_size is None
    assert profile.token_counts is None
    assert profile.sample is not None
    assert profile.sample.request_ids is None


def test_without_a_vocabulary_size_the_largest_token_gives_it(trace) -> None:
    assert import_npz(trace(vocab_size=None)).vocab_size == arrays()["token_ids"].max() + 1


def test_a_sample_keeps_whole_requests_and_exact_counts(trace) -> None:
    full, part = import_npz(trace()), import_npz(trace(), sample_tokens=45, seed=1)
    assert part.sample is not None
    assert part.sample.num_tokens == 40
    assert np.array_equal(part.coactivation_counts, full.coactivation_counts)
    with pytest.raises(UsageError, match="no request fits"):
        import_npz(trace(), sample_tokens=19)
    with pytest.raises(UsageError, match="sample_tokens is 0"):
        import_npz(trace(), sample_tokens=0)


def test_wide_and_narrow_ids_give_the_same_profile(trace) -> None:
    narrow = import_npz(trace())
    wide = import_npz(trace(expert_ids=arrays()["expert_ids"].astype(np.uint16)))
    assert narrow.fingerprint == wide.fingerprint


def test_domains_are_counted_by_their_numbers(trace) -> None:
    domain_ids = np.repeat([2, 0, 2], T // 3).astype(np.int16)
    profile = import_npz(trace(domain_ids=domain_ids))
    assert profile.domains is not None
    assert profile.domains.names == ("0", "1", "2")
    assert profile.domains.num_tokens.tolist() == [T // 3, 0, 2 * T // 3]
    own = arrays()["expert_ids"][domain_ids == 0]
    expected = [np.bincount(own[:, layer].ravel(), minlength=E) for layer in range(L)]
    assert np.array_equal(profile.domains.expert_counts[0], expected)


@pytest.mark.parametrize("number", [-1, 1024])
def test_domains_without_a_small_number_are_left_to_the_sample(number: int, trace) -> None:
    domain_ids = np.full(T, number, dtype=np.int16)
    profile = import_npz(trace(domain_ids=domain_ids))
    assert profile.domains is None
    assert profile.sample is not None
    assert np.array_equal(profile.sample.domain_ids, domain_ids)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no ids": ({"expert_ids": None}, "expert_ids is missing"),
    "no number": ({"num_experts": None}, "num_experts is missing"),
    "ids of a wrong type": (
        {"expert_ids": np.zeros((T, L, K), dtype=np.int64)},
        "expert_ids is int64, uint8 or uint16",
    ),
    "ids of a wrong shape": ({"expert_ids": np.zeros((T, K), dtype=np.uint8)}, r"expert_ids has shape \[60, 3\]"),
    "an id out of range": ({"num_experts": np.int64(7)}, "distinct ids from 0 to 6"),
    "an expert twice": ({"expert_ids": np.zeros((T, L, K), dtype=np.uint8)}, r"\[0, 0, 0\] for token 0"),
    "no experts": ({"num_experts": np.int64(0)}, "num_experts is 0"),
    "a fraction of experts": ({"num_experts": np.float64(8)}, "num_experts is float64"),
    "many numbers of experts": ({"num_experts": np.array([8, 8])}, r"num_experts is int64 \[2\]"),
    "long tokens": ({"token_ids": np.zeros(T, dtype=np.int64)}, "token_ids is int64, int32"),
    "no layer": ({"expert_ids": np.zeros((T, 0, K), dtype=np.uint8)}, r"shape \[60, 0, 3\], at least one layer"),
    "few tokens": ({"token_ids": np.zeros(T - 1, dtype=np.int32)}, r"token_ids has shape \[59\], \[60\]"),
    "a token outside": ({"vocab_size": np.int64(5)}, "token_ids has values"),
    "layers that fall": ({"layer_ids": np.array([3, 1], dtype=np.int32)}, "layer_ids must increase"),
    "few layers": ({"layer_ids": np.array([3], dtype=np.int32)}, r"layer_ids has shape \[1\], \[2\]"),
    "weights that are no numbers": ({"gate_weights": np.full((T, L, K), np.nan, dtype=np.float16)}, "gate_weights has"),
    "a pickle": ({"token_ids": np.array([None] * T, dtype=object)}, "holds Python objects"),
    "no token": (
        {
            "expert_ids": np.zeros((0, L, K), dtype=np.uint8),
            **dict.fromkeys(("token_ids", "request_ids", "gate_weights", "domain_ids")),
        },
        "holds no token",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_a_trace_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, trace) -> None:
    path = trace(**changes)
    with pytest.raises(ArtifactError, match=message) as refused:
        import_npz(path)
    assert str(refused.value).startswith(str(path))


def test_a_file_that_is_no_npz_is_refused(tmp_path) -> None:
    with pytest.raises(ArtifactError, match="is not a file"):
        import_npz(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ArtifactError, match="cannot be read as an npz"):
        import_npz(tmp_path / "text.npz")


def test_a_truncated_or_corrupt_file_is_refused(trace) -> None:
    path = trace()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="cannot be read as an npz"):
        import_npz(path)
    damaged = bytearray(content)
    damaged[120:160] = bytes(40)
    path.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="cannot be read as an npz"):
        import_npz(path)


def test_a_header_that_promises_more_than_the_file_holds_is_refused_unallocated(trace) -> None:
    path = trace()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    honest = f"({T}, {L}, {K})".encode()
    assert honest in members["expert_ids.npy"]
    claim = b"(6000000000000, 2, 3)"
    header = members["expert_ids.npy"].replace(honest + b", }" + b" " * (len(claim) - len(honest)), claim + b", }")
    assert claim in header
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"expert_ids.npy": header}).items():
            archive.writestr(name, content)
    with pytest.raises(ArtifactError, match="declares shape"):
        import_npz(path)
