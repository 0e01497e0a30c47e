"""Accumulate the routing of batch after batch into a profile, in memory that does not grow with the corpus."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.pair_counts import check_expert_ids
from specmoe.profiler.phase_counts import DECODE, DecodeCounts
from specmoe.profiler.request_sample import RequestReservoir
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routing_counts import RoutingCounts
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample
from specmoe.profiler.sample_state import Routing, merge_sample, sample_state


class RoutingRecorder:
    """Counts over every token, and a uniform sample of whole requests with their gate weights.

    domains: their names, by domain id. keeps_phases: also count generated tokens apart.

    Memory: 16 * L * E * E bytes of pair counts, 3 * L * K bytes per sampled token, a `DomainCounter` and a
    `TokenCountBuilder`; all but the sample twice where phases are kept apart.
    """

    def __init__(
        self,
        *,
        layer_ids: Sequence[int],
        num_logical_experts: int,
        top_k: int,
        sample_tokens: int,
        seed: int,
        domains: Sequence[str],
        keeps_phases: bool = False,
    ) -> None:
        self._layer_ids = np.asarray(layer_ids, dtype=np.int32)
        self._num_logical_experts = num_logical_experts
        self._top_k = top_k
        self._counts = RoutingCounts(len(layer_ids), num_logical_experts, domains)
        self._decode = RoutingCounts(len(layer_ids), num_logical_experts, domains) if keeps_phases else None
        self._reservoir: RequestReservoir[Routing] = RequestReservoir(sample_tokens, seed)

    @property
    def num_tokens(self) -> int:
        """How many tokens were recorded, prefill and decode."""
        return self._counts.pairs.num_tokens

    @property
    def num_decode_tokens(self) -> int:
        """How many of them were generated."""
        return 0 if self._decode is None else self._decode.pairs.num_tokens

    def wanted(self, requests: Sequence[Request]) -> NDArray[np.bool_]:
        """bool [number of requests]: which can still come into the sample."""
        return np.asarray([self._reservoir.wants(request.index, len(request.token_ids)) for request in requests])

    def add(
        self, requests: Sequence[Request], expert_ids: Array, gate_weights: Array, offered: NDArray[np.bool_]
    ) -> None:
        """Record the tokens of `requests`, one after the other: expert_ids uint8 | uint16 [T, L, K], and gate_weights
        float16 [W, L, K] of the requests that are `offered` to the sample: those `wanted`, now or when they were run.
        """
        check_expert_ids(expert_ids, self._num_logical_experts, "the model's routing")
        if not np.isfinite(gate_weights).all():
            raise ArtifactError("the router's weights are not finite in this data type; try another dtype")
        lengths = [len(request.token_ids) for request in requests]
        token_ids = np.concatenate([request.token_ids for request in requests])
        domain_ids = np.repeat([request.domain_id for request in requests], lengths)
        self._counts.add(expert_ids, token_ids, domain_ids)
        if self._decode is not None:
            generated = _phases(requests) == DECODE
            self._decode.add(expert_ids[generated], token_ids[generated], domain_ids[generated])
        token = weight = 0
        for request, is_offered in zip(requests, offered, strict=True):
            length = len(request.token_ids)
            if is_offered:
                # Copies: a view would keep the whole batch in memory.
                ids, weights = expert_ids[token : token + length], gate_weights[weight : weight + length]
                self._reservoir.add(request.index, length, (request, ids.copy(), weights.copy()))
                weight += length
            token += length

    def state(self) -> dict[str, Array]:
        """All that was recorded, as arrays that `merge` takes: for a file, or for another process."""
        parts = {
            "counts": self._counts.state(),
            "sample": sample_state(self._reservoir, len(self._layer_ids), self._top_k),
            **({} if self._decode is None else {"decode": self._decode.state()}),
        }
        return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def merge(self, state: Mapping[str, Array]) -> None:
        """Record what a recorder of the same settings recorded of other requests."""
        self._counts.merge(_part(state, "counts"))
        if self._decode is not None:
            self._decode.merge(_part(state, "decode"))
        merge_sample(self._reservoir, _part(state, "sample"))

    def finish(
        self,
        *,
        vocab_size: int,
        num_expert_groups: int,
        model_fingerprint: str,
        source: str,
        seen_share: float | None = None,
    ) -> RoutingProfile:
        """The profile of everything recorded."""
        pairs = self._counts.pairs
        return RoutingProfile(
            layer_ids=self._layer_ids,
            expert_counts=pairs.expert_counts(),
            coactivation_counts=pairs.coactivation_counts(),
            transition_counts=pairs.transition_counts(),
            sample=self._sample(),
            token_counts=self._counts.by_token.finish(),
            num_logical_experts=self._num_logical_experts,
            top_k=self._top_k,
            num_tokens=self.num_tokens,
            vocab_size=vocab_size,
            num_expert_groups=num_expert_groups,
            model_fingerprint=model_fingerprint,
            source=source,
            decode=self._decode_counts(),
            domains=self._counts.by_domain.finish(),
            seen_share=seen_share,
        )

    def _decode_counts(self) -> DecodeCounts | None:
        if self._decode is None:
            return None
        return DecodeCounts(
            num_tokens=self.num_decode_tokens,
            expert_counts=self._decode.pairs.expert_counts(),
            coactivation_counts=self._decode.pairs.coactivation_counts(),
            transition_counts=self._decode.pairs.transition_counts(),
            token_counts=self._decode.by_token.finish(),
            domains=self._decode.by_domain.finish(),
        )

    def _sample(self) -> RoutingSample:
        if not self.num_tokens:
            raise ArtifactError("the corpus gives no token; text to profile the model on was expected")
        routings = list(self._reservoir.finish().values())
        requests = [request for request, _, _ in routings]
        lengths = [len(request.token_ids) for request in requests]
        return RoutingSample(
            expert_ids=np.concatenate([expert_ids for _, expert_ids, _ in routings]),
            gate_weights=np.concatenate([gate_weights for _, _, gate_weights in routings]),
            token_ids=np.concatenate([request.token_ids for request in requests]),
            request_ids=np.repeat([request.index for request in requests], lengths).astype(np.int32),
            positions=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
            domain_ids=np.repeat([request.domain_id for request in requests], lengths).astype(np.int16),
            phases=None if self._decode is None else _phases(requests),
        )


def _phases(requests: Sequence[Request]) -> NDArray[np.int8]:
    """int8 [T]: the phase of each token of `requests`, one after the other."""
    lengths = np.asarray([len(request.token_ids) for request in requests])
    prompts = lengths - [request.num_generated for request in requests]
    positions = np.concatenate([np.arange(length) for length in lengths])
    return (positions >= np.repeat(prompts, lengths)).astype(np.int8)


def _part(state: Mapping[str, Array], part: str) -> dict[str, Array]:
    prefix = part + "."
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
