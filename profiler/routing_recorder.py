"""Accumulate the routing of batch after batch into a profile, in memory that does not grow with the corpus."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.pair_counts import PairCounts, check_expert_ids
from specmoe.profiler.request_sample import RequestReservoir
from specmoe.profiler.request_stream import Request
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample
from specmoe.profiler.token_count_builder import TokenCountBuilder

Routing = tuple[Request, Array, Array]


class RoutingRecorder:
    """Counts over every token, and a uniform sample of whole requests with their gate weights.

    Memory: 16 * L * E * E bytes of pair counts, 3 * L * K bytes per sampled token, and a `TokenCountBuilder`.
    """

    def __init__(
        self, *, layer_ids: Sequence[int], num_logical_experts: int, top_k: int, sample_tokens: int, seed: int
    ) -> None:
        self._layer_ids = np.asarray(layer_ids, dtype=np.int32)
        self._num_logical_experts = num_logical_experts
        self._top_k = top_k
        self._pairs = PairCounts(len(layer_ids), num_logical_experts)
        self._by_token = TokenCountBuilder(len(layer_ids), num_logical_experts)
        self._reservoir: RequestReservoir[Routing] = RequestReservoir(sample_tokens, seed)

    def wanted(self, requests: Sequence[Request]) -> NDArray[np.bool_]:
        """bool [T]: the tokens of `requests`, one after the other, that can come into the sample."""
        wants = [self._reservoir.wants(request.index, len(request.token_ids)) for request in requests]
        return np.repeat(wants, [len(request.token_ids) for request in requests])

    def add(self, requests: Sequence[Request], expert_ids: Array, gate_weights: Array) -> None:
        """Record the tokens of `requests`, one after the other: expert_ids uint8 | uint16 [T, L, K], and gate_weights
        float16 [W, L, K] of those among them that are `wanted`.
        """
        check_expert_ids(expert_ids, self._num_logical_experts, "the model's routing")
        if not np.isfinite(gate_weights).all():
            raise ArtifactError("the router's weights are not finite in this data type; try another dtype")
        self._pairs.add(expert_ids)
        self._by_token.add(expert_ids, np.concatenate([request.token_ids for request in requests]))
        wanted = [self._reservoir.wants(request.index, len(request.token_ids)) for request in requests]
        token = weight = 0
        for request, is_wanted in zip(requests, wanted, strict=True):
            length = len(request.token_ids)
            if is_wanted:
                # Copies: a view would keep the whole batch in memory.
                ids, weights = expert_ids[token : token + length], gate_weights[weight : weight + length]
                self._reservoir.add(request.index, length, (request, ids.copy(), weights.copy()))
                weight += length
            token += length

    def finish(self, *, vocab_size: int, num_expert_groups: int, model_fingerprint: str, source: str) -> RoutingProfile:
        """The profile of everything recorded."""
        return RoutingProfile(
            layer_ids=self._layer_ids,
            expert_counts=self._pairs.expert_counts(),
            coactivation_counts=self._pairs.coactivation_counts(),
            transition_counts=self._pairs.transition_counts(),
            sample=self._sample(),
            token_counts=self._by_token.finish(),
            num_logical_experts=self._num_logical_experts,
            top_k=self._top_k,
            num_tokens=self._pairs.num_tokens,
            vocab_size=vocab_size,
            num_expert_groups=num_expert_groups,
            model_fingerprint=model_fingerprint,
            source=source,
        )

    def _sample(self) -> RoutingSample:
        if not self._pairs.num_tokens:
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
        )
