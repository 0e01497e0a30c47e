"""The routing profile: what a model's routers did over a corpus, as exact counts and a sample of requests."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array, Description, digest, read_artifact, write_artifact
from specmoe.errors import ArtifactError
from specmoe.fields import check_range, check_tensor, entry, optional_entry
from specmoe.profiler.domain_counts import DomainCounts
from specmoe.profiler.phase_counts import DECODE, PREFILL, DecodeCounts
from specmoe.profiler.token_counts import TokenExpertCounts

PROFILE_FORMAT = "specmoe.profile/1"


@dataclass(frozen=True, kw_only=True)
class RoutingSample:
    """Whole requests in trace order, token by token; a request's tokens are consecutive rows.

    expert_ids: uint8 | uint16 [S, L, K], logical experts, K distinct ones per token and layer.
    gate_weights: float16 [S, L, K] or None; token_ids, request_ids, positions: int32 [S] or None;
    domain_ids: int16 [S] or None; phases: int8 [S], `PREFILL` or `DECODE`, None where they are not kept apart.
    """

    expert_ids: Array
    gate_weights: Array | None = None
    token_ids: NDArray[np.int32] | None = None
    request_ids: NDArray[np.int32] | None = None
    positions: NDArray[np.int32] | None = None
    domain_ids: NDArray[np.int16] | None = None
    phases: NDArray[np.int8] | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.expert_ids.shape[0])

    def rows(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "RoutingSample":
        """These tokens' rows: int64 [n], in that order and as often as they are named, or bool [S]."""
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        taken: dict[str, Any] = {name: None if array is None else array[chosen] for name, array in arrays.items()}
        return RoutingSample(**taken)

    def expert_counts(self, num_logical_experts: int) -> NDArray[np.int64]:
        """int64 [L, E]: how many tokens use each expert."""
        layers = self.expert_ids.swapaxes(0, 1)
        return np.stack([np.bincount(ids.ravel(), minlength=num_logical_experts) for ids in layers]).astype(np.int64)

    def check(self, num_layers: int, num_logical_experts: int, top_k: int) -> None:
        """Raise `ArtifactError` unless every array fits the others and the model's sizes."""
        shape = (-1, num_layers, top_k)
        check_tensor("sample.expert_ids", self.expert_ids, (np.uint8, np.uint16), shape)
        check_range("sample.expert_ids", self.expert_ids, 0, num_logical_experts)
        if _has_repeats(self.expert_ids):
            raise ArtifactError("tensor sample.expert_ids names an expert twice for one token in one layer")
        if self.gate_weights is not None:
            check_tensor("sample.gate_weights", self.gate_weights, (np.float16,), self.expert_ids.shape)
        for name, dtype in _PER_TOKEN.items():
            array = getattr(self, name)
            if array is not None:
                check_tensor(f"sample.{name}", array, (dtype,), (self.num_tokens,))
        if self.phases is not None:
            check_range("sample.phases", self.phases, PREFILL, DECODE + 1)
        if self.request_ids is not None:
            _check_consecutive(self.request_ids)


@dataclass(frozen=True, kw_only=True)
class RoutingProfile:
    """Exact counts over every token seen and, where the source was a trace, a sample of whole requests.

    layer_ids: int32 [L], the decoder layer of each row. expert_counts: int64 [L, E].
    coactivation_counts: int64 [L, E, E], symmetric, its diagonal is `expert_counts`; transition_counts: int64
    [L-1, E, E], entry [l, i, j] counts the tokens that used i in row l and j in row l+1; both None, with `sample` and
    `token_counts`, where the source had counts alone. `vocab_size` is V, or None where token ids are unknown.
    num_expert_groups: how many groups of consecutive experts the router chooses among first (`n_group` in the model's
    configuration, 1 where it does not), None where that is unknown. decode: the counts of generated tokens alone, where
    these were kept apart. domains: the counts of each domain. seen_share: how much of the corpus a run had seen when it
    was stopped, None for a whole one. too_long_requests: how many requests are not in the sample because they are
    longer than all of it.
    """

    layer_ids: NDArray[np.int32]
    expert_counts: NDArray[np.int64]
    num_logical_experts: int
    top_k: int
    num_tokens: int
    vocab_size: int | None = None
    num_expert_groups: int | None = None
    coactivation_counts: NDArray[np.int64] | None = None
    transition_counts: NDArray[np.int64] | None = None
    sample: RoutingSample | None = None
    token_counts: TokenExpertCounts | None = None
    model_fingerprint: str | None = None
    source: str = ""
    decode: DecodeCounts | None = None
    domains: DomainCounts | None = None
    seen_share: float | None = None
    too_long_requests: int = 0

    def __post_init__(self) -> None:
        L, E = len(self.layer_ids), self.num_logical_experts
        if not 1 <= self.top_k <= E or L < 1:
            raise ArtifactError(f"a profile of {L} layers, {E} experts and top-{self.top_k} is not possible")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ArtifactError(f"vocab_size is {self.vocab_size}, at least 1 was expected")
        groups = self.num_expert_groups
        if groups is not None and (groups < 1 or E % groups != 0):
            raise ArtifactError(f"num_expert_groups is {groups}, a divisor of the {E} experts was expected")
        check_tensor("layer_ids", self.layer_ids, (np.int32,), (L,))
        if np.any(np.diff(self.layer_ids) <= 0):
            raise ArtifactError("tensor layer_ids must increase from row to row")
        check_range("layer_ids", self.layer_ids, 0, np.inf)
        check_tensor("expert_counts", self.expert_counts, (np.int64,), (L, E))
        check_range("expert_counts", self.expert_counts, 0, np.inf)
        self._check_pair_counts(L, E)
        if self.sample is not None:
            self.sample.check(L, E, self.top_k)
            if self.vocab_size is not None and self.sample.token_ids is not None:
                check_range("sample.token_ids", self.sample.token_ids, -1, self.vocab_size)
        if self.token_counts is not None:
            self.token_counts.check(L, E)
        if self.decode is not None:
            self.decode.check(L, E)
        if self.domains is not None:
            self.domains.check(self.expert_counts)
        if self.seen_share is not None and not 0 <= self.seen_share <= 1:
            raise ArtifactError(f"seen_share is {self.seen_share}, 0 to 1 was expected")

    def _check_pair_counts(self, L: int, E: int) -> None:
        if self.coactivation_counts is not None:
            check_tensor("coactivation_counts", self.coactivation_counts, (np.int64,), (L, E, E))
            diagonal = np.diagonal(self.coactivation_counts, axis1=1, axis2=2)
            if not np.array_equal(diagonal, self.expert_counts):
                raise ArtifactError("the diagonal of coactivation_counts differs from expert_counts")
        if self.transition_counts is not None:
            check_tensor("transition_counts", self.transition_counts, (np.int64,), (L - 1, E, E))

    @property
    def num_layers(self) -> int:
        return len(self.layer_ids)

    def require_sample(self, purpose: str) -> RoutingSample:
        """The sample, or `ArtifactError` saying that `purpose` needs one."""
        if self.sample is None or self.sample.num_tokens == 0:
            raise ArtifactError(
                f"{purpose} needs the routing of single tokens, and this profile has counts alone; "
                "profile the model over text or import a per-token record"
            )
        return self.sample

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that the profile holds, as hexadecimal."""
        return digest(self._tensors(), self._description())

    def save(self, path: str | PathLike[str], *, force: bool = False) -> None:
        """Write the profile to `path`, whole or not at all."""
        write_artifact(Path(path), self._tensors(), self._description(), force=force)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "RoutingProfile":
        """Read and check a profile; raises `ArtifactError`, naming the file, where anything does not fit."""
        tensors, description = read_artifact(Path(path), PROFILE_FORMAT)
        try:
            return cls._from_file(tensors, description)
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    @classmethod
    def _from_file(cls, tensors: dict[str, Array], description: Description) -> "RoutingProfile":
        for required in ("layer_ids", "expert_counts"):
            if required not in tensors:
                raise ArtifactError(f"tensor {required} is missing")
        return cls(
            layer_ids=tensors["layer_ids"],
            expert_counts=tensors["expert_counts"],
            coactivation_counts=tensors.get("coactivation_counts"),
            transition_counts=tensors.get("transition_counts"),
            sample=_sample_from(tensors),
            token_counts=TokenExpertCounts.from_tensors(tensors),
            num_logical_experts=entry(description, "num_logical_experts", int),
            top_k=entry(description, "top_k", int),
            num_tokens=entry(description, "num_tokens", int),
            vocab_size=optional_entry(description, "vocab_size", int),
            num_expert_groups=optional_entry(description, "num_expert_groups", int),
            model_fingerprint=optional_entry(description, "model_fingerprint", str),
            source=entry(description, "source", str),
            decode=DecodeCounts.from_file(tensors, description),
            domains=DomainCounts.from_file(tensors, description),
            seen_share=optional_entry(description, "seen_share", float),
            too_long_requests=optional_entry(description, "too_long_requests", int) or 0,
        )

    def _tensors(self) -> dict[str, Array]:
        tensors: dict[str, Array] = {"layer_ids": self.layer_ids, "expert_counts": self.expert_counts}
        if self.coactivation_counts is not None:
            tensors["coactivation_counts"] = self.coactivation_counts
        if self.transition_counts is not None:
            tensors["transition_counts"] = self.transition_counts
        if self.sample is not None:
            present = {field.name: getattr(self.sample, field.name) for field in fields(self.sample)}
            tensors |= {f"sample.{name}": array for name, array in present.items() if array is not None}
        if self.token_counts is not None:
            tensors |= self.token_counts.to_tensors()
        if self.decode is not None:
            tensors |= self.decode.to_tensors()
        if self.domains is not None:
            tensors |= self.domains.to_tensors()
        return tensors

    def _description(self) -> Description:
        # Only what there is: a profile without these keeps the fingerprint that plans know it by.
        optional = {
            "num_decode_tokens": None if self.decode is None else self.decode.num_tokens,
            "domains": None if self.domains is None else list(self.domains.names),
            "seen_share": self.seen_share,
            "too_long_requests": self.too_long_requests or None,
        }
        return {
            "format": PROFILE_FORMAT,
            "num_logical_experts": self.num_logical_experts,
            "top_k": self.top_k,
            "num_tokens": self.num_tokens,
            "vocab_size": self.vocab_size,
            "num_expert_groups": self.num_expert_groups,
            "model_fingerprint": self.model_fingerprint,
            "source": self.source,
            **{name: value for name, value in optional.items() if value is not None},
        }


_PER_TOKEN: dict[str, type[np.generic]] = {
    "token_ids": np.int32,
    "request_ids": np.int32,
    "positions": np.int32,
    "domain_ids": np.int16,
    "phases": np.int8,
}


def _sample_from(tensors: Mapping[str, Array]) -> RoutingSample | None:
    if "sample.expert_ids" not in tensors:
        return None
    names = [field.name for field in fields(RoutingSample)]
    arrays: dict[str, Any] = {name: tensors.get(f"sample.{name}") for name in names}
    return RoutingSample(**arrays)


def _has_repeats(expert_ids: Array) -> bool:
    ordered = np.sort(expert_ids, axis=-1)
    return bool(np.any(ordered[..., 1:] == ordered[..., :-1]))


def _check_consecutive(request_ids: NDArray[np.int32]) -> None:
    starts = request_ids[np.flatnonzero(np.diff(request_ids, prepend=request_ids[:1] - 1))]
    if len(np.unique(starts)) != len(starts):
        raise ArtifactError("tensor sample.request_ids splits a request: its tokens must be consecutive rows")
