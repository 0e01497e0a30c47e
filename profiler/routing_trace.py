"""A routing trace: which experts every single token used, as an import source hands it over."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import ArtifactError, UsageError
from specmoe.fields import check_range
from specmoe.profiler.domain_counter import DomainCounter
from specmoe.profiler.domain_counts import DomainCounts
from specmoe.profiler.pair_counts import PairCounts, check_expert_ids, id_dtype
from specmoe.profiler.request_sample import choose_requests
from specmoe.profiler.routing_profile import RoutingProfile, RoutingSample
from specmoe.profiler.token_count_builder import TokenCountBuilder

BLOCK_TOKENS = 65_536
# Of a trace with higher domain ids than this the sample alone knows its domains: their counts would take gigabytes.
MOST_DOMAINS = 1024


@dataclass(frozen=True, kw_only=True)
class RoutingTrace:
    """expert_ids: uint8 | uint16 [T, L, K]; layer_ids: int32 [L]; gate_weights: float16 [T, L, K] or None; token_ids,
    request_ids: int32 [T] or None; domain_ids: int16 [T] or None; vocab_size: V or None. Tokens of a request keep
    their order, and need not be consecutive. source: what the trace is, in words.
    """

    expert_ids: Array
    layer_ids: NDArray[np.int32]
    num_logical_experts: int
    gate_weights: Array | None = None
    token_ids: NDArray[np.int32] | None = None
    request_ids: NDArray[np.int32] | None = None
    domain_ids: NDArray[np.int16] | None = None
    vocab_size: int | None = None
    model_fingerprint: str | None = None
    source: str = ""

    @property
    def num_tokens(self) -> int:
        return len(self.expert_ids)

    def take(self, tokens: NDArray[np.int64]) -> "RoutingTrace":
        """The trace of `tokens` (indices) alone, in that order."""
        present = {name: getattr(self, name) for name in _PER_TOKEN}
        taken: dict[str, Any] = {name: None if array is None else array[tokens] for name, array in present.items()}
        return replace(self, **taken)


def profile_of_trace(trace: RoutingTrace, *, sample_tokens: int | None = None, seed: int = 0) -> RoutingProfile:
    """Exact counts over the whole trace; all of it as the sample, or requests drawn up to `sample_tokens` tokens.

    Domains are named by their numbers. Requests whose tokens are not consecutive are regrouped, in order of first
    appearance. Without request ids the sample is drawn token by token. Raises `ArtifactError` where an id is out of
    range or a token names an expert twice.
    """
    if sample_tokens is not None and sample_tokens < 1:
        raise UsageError(f"sample_tokens is {sample_tokens}, at least 1 was expected")
    _check_values(trace)
    dtype = id_dtype(trace.num_logical_experts)
    trace = _regrouped(replace(trace, expert_ids=np.ascontiguousarray(trace.expert_ids, dtype=dtype)))
    pairs = PairCounts(len(trace.layer_ids), trace.num_logical_experts)
    by_token = TokenCountBuilder(len(trace.layer_ids), trace.num_logical_experts)
    for start in range(0, trace.num_tokens, BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        pairs.add(trace.expert_ids[block])
        if trace.token_ids is not None:
            by_token.add(trace.expert_ids[block], trace.token_ids[block])
    return RoutingProfile(
        layer_ids=trace.layer_ids,
        expert_counts=pairs.expert_counts(),
        coactivation_counts=pairs.coactivation_counts(),
        transition_counts=pairs.transition_counts(),
        sample=_sample(trace, sample_tokens, seed),
        token_counts=None if trace.token_ids is None else by_token.finish(),
        num_logical_experts=trace.num_logical_experts,
        top_k=trace.expert_ids.shape[2],
        num_tokens=trace.num_tokens,
        vocab_size=trace.vocab_size,
        model_fingerprint=trace.model_fingerprint,
        source=trace.source,
        too_long_requests=_num_too_long(trace, sample_tokens),
        domains=_domain_counts(trace),
    )


_PER_TOKEN = ("expert_ids", "gate_weights", "token_ids", "request_ids", "domain_ids")


def _check_values(trace: RoutingTrace) -> None:
    if trace.num_tokens == 0:
        raise ArtifactError("the trace holds no token; at least one was expected")
    check_expert_ids(trace.expert_ids, trace.num_logical_experts, "expert_ids")
    if trace.gate_weights is not None:
        check_range("gate_weights", trace.gate_weights, -np.inf, np.inf)
    if trace.token_ids is not None and trace.vocab_size is not None:
        check_range("token_ids", trace.token_ids, -1, trace.vocab_size)


def _regrouped(trace: RoutingTrace) -> RoutingTrace:
    if trace.request_ids is None:
        return trace
    _, first_token, group = np.unique(trace.request_ids, return_index=True, return_inverse=True)
    order = np.argsort(first_token[group], kind="stable")
    if np.array_equal(order, np.arange(len(order))):
        return trace
    return trace.take(order)


def _requests(trace: RoutingTrace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first token and the length of each request of a regrouped trace; without request ids each token is one."""
    request_ids = np.arange(trace.num_tokens) if trace.request_ids is None else trace.request_ids
    starts = np.flatnonzero(np.diff(request_ids, prepend=request_ids[:1] - 1))
    return starts, np.diff(starts, append=trace.num_tokens)


def _domain_counts(trace: RoutingTrace) -> DomainCounts | None:
    """The counts of each domain, named by its number."""
    if trace.domain_ids is None or not 0 <= trace.domain_ids.min() <= trace.domain_ids.max() < MOST_DOMAINS:
        return None
    names = [str(number) for number in range(int(trace.domain_ids.max()) + 1)]
    counter = DomainCounter(names, len(trace.layer_ids), trace.num_logical_experts)
    counter.add(trace.expert_ids, trace.domain_ids.astype(np.int64))
    return counter.finish()


def _num_too_long(trace: RoutingTrace, sample_tokens: int | None) -> int:
    """How many requests no sample of `sample_tokens` tokens can hold."""
    if sample_tokens is None or sample_tokens >= trace.num_tokens:
        return 0
    return int((_requests(trace)[1] > sample_tokens).sum())


def _sample(trace: RoutingTrace, sample_tokens: int | None, seed: int) -> RoutingSample:
    starts, lengths = _requests(trace)
    positions = np.arange(trace.num_tokens) - np.repeat(starts, lengths)
    if sample_tokens is not None and sample_tokens < trace.num_tokens:
        chosen = np.zeros(len(starts), dtype=np.bool_)
        chosen[choose_requests(lengths, sample_tokens, seed)] = True
        tokens = np.flatnonzero(np.repeat(chosen, lengths))
        if len(tokens) == 0:
            raise UsageError(
                f"no request fits into a sample of {sample_tokens} tokens (the shortest has {lengths.min()}); "
                "ask for a larger one"
            )
        trace, positions = trace.take(tokens), positions[tokens]
    return RoutingSample(
        expert_ids=trace.expert_ids,
        gate_weights=trace.gate_weights,
        token_ids=trace.token_ids,
        request_ids=trace.request_ids,
        positions=None if trace.request_ids is None else positions.astype(np.int32),
        domain_ids=trace.domain_ids,
    )
