"""Put the routing of single served requests, as vLLM and SGLang return it, together to one trace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.pair_counts import check_expert_ids, id_dtype
from specmoe.profiler.routing_trace import RoutingTrace


@dataclass(frozen=True, kw_only=True)
class ServedRequest:
    """expert_ids: whole numbers [tokens, all decoder layers, K], logical; token_ids: int32 [tokens], -1 = unknown.

    `where` names file and place.
    """

    where: str
    expert_ids: Array
    token_ids: NDArray[np.int32]


def trace_of_requests(requests: Sequence[ServedRequest], facts: ModelFacts, source: str) -> RoutingTrace:
    """One trace of all requests; both engines fill dense layers with zeros, which is how they are told apart.

    Raises `ArtifactError` where requests differ in layers or experts per token, or ids do not fit the model.
    """
    num_experts = facts.require("num_experts", source)
    if not requests:
        raise ArtifactError(f"{source} holds no routed_experts; the server must be started with returning them enabled")
    for request in requests:
        _check_request(request, requests[0], facts)
    expert_ids = np.concatenate([request.expert_ids for request in requests])
    routed = _routed_layers(expert_ids, source)
    expert_ids = expert_ids[:, routed]
    check_expert_ids(expert_ids, num_experts, source)
    token_ids = np.concatenate([request.token_ids for request in requests])
    lengths = [len(request.expert_ids) for request in requests]
    known = bool((token_ids >= 0).any())
    return RoutingTrace(
        expert_ids=expert_ids.astype(id_dtype(num_experts)),
        layer_ids=routed.astype(np.int32),
        num_logical_experts=num_experts,
        token_ids=token_ids if known else None,
        request_ids=np.repeat(np.arange(len(requests)), lengths).astype(np.int32),
        vocab_size=(facts.vocab_size or int(token_ids.max()) + 1) if known else None,
        model_fingerprint=facts.fingerprint,
        source=source,
    )


def known_tokens(token_ids: object, num_tokens: int) -> NDArray[np.int32]:
    """`token_ids` of a request's prompt and answer for the first `num_tokens`, or -1 where they do not match it.

    The last token is not run through the model, so there may be one more than there are rows.
    """
    if isinstance(token_ids, list) and len(token_ids) - num_tokens in (0, 1):
        with_all = np.asarray(token_ids[:num_tokens])
        if with_all.dtype.kind in "iu" and with_all.min(initial=0) >= 0 and with_all.max(initial=0) < 2**31:
            return with_all.astype(np.int32)
    return np.full(num_tokens, -1, dtype=np.int32)


def _check_request(request: ServedRequest, first: ServedRequest, facts: ModelFacts) -> None:
    shape, expected = request.expert_ids.shape[1:], first.expert_ids.shape[1:]
    if shape != expected:
        raise ArtifactError(f"{request.where} has [layers, top-k] {list(shape)}, {first.where} has {list(expected)}")
    for name, value in (("num_layers", shape[0]), ("top_k", shape[1])):
        known = getattr(facts, name)
        if known is not None and known != value:
            raise ArtifactError(f"{request.where} has {name} {value}, the model has {known}")
    if request.expert_ids.dtype == np.uint8 and (facts.num_experts or 0) > 256:
        raise ArtifactError(
            f"{request.where} holds ids of 8 bits, which {facts.num_experts} experts do not fit: they were cut off "
            "when they were written"
        )


def _routed_layers(expert_ids: Array, source: str) -> NDArray[np.int64]:
    used = expert_ids.any(axis=(0, 2))
    if expert_ids.shape[2] == 1 and not used.all():
        raise ArtifactError(
            f"{source} has a layer of zeros, which with top-1 routing may be a dense layer or one that uses "
            "expert 0 alone; write an npz trace with layer_ids instead"
        )
    routed = np.flatnonzero(used)
    if len(routed) == 0:
        raise ArtifactError(f"{source} has zeros alone; no layer is routed")
    return routed
