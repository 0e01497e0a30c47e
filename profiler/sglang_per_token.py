"""The trace in SGLang's `per_token` records.

A prefill's sequences are requests of their own; a decoded token is one too, for the record does not say whose it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.pair_counts import id_dtype
from specmoe.profiler.routing_trace import RoutingTrace

Record = Mapping[str, Any]
# How many experts a token has room for in SGLang's records, whatever the model.
RECORDED_TOP_K = 8


def trace_of_passes(
    records: Sequence[Record], physical_to_logical: Array, facts: ModelFacts, source: str
) -> RoutingTrace:
    """One trace of all passes; ranks that saw the very same tokens count once. Padding tokens (-1) are dropped."""
    if (facts.top_k or 0) > RECORDED_TOP_K:
        raise ArtifactError(f"{source} holds {RECORDED_TOP_K} experts a token, the model uses {facts.top_k}")
    records = _distinct(records)
    ids = np.concatenate([_topk_ids(record, physical_to_logical, source) for record in records])
    token_ids = np.concatenate([np.asarray(record["input_ids"], dtype=np.int32) for record in records])
    request_ids = _request_ids(records, source)
    layers = np.flatnonzero((ids >= 0).any(axis=(0, 2)))
    tokens = np.flatnonzero((ids[:, layers] >= 0).any(axis=(1, 2)))
    if len(tokens) == 0:
        raise ArtifactError(f"{source} routes no token; send requests while it records")
    ids, token_ids, request_ids = ids[tokens][:, layers], token_ids[tokens], request_ids[tokens]
    top_k = int((ids[0, 0] >= 0).sum())
    if np.any((ids >= 0).sum(axis=2) != top_k) or np.any(ids[..., :top_k] < 0):
        raise ArtifactError(f"{source} gives tokens different numbers of experts; {top_k} each were expected")
    num_experts = int(physical_to_logical.max()) + 1
    return RoutingTrace(
        expert_ids=_to_logical(ids[..., :top_k], physical_to_logical[layers]).astype(id_dtype(num_experts)),
        layer_ids=layers.astype(np.int32),
        num_logical_experts=num_experts,
        token_ids=token_ids,
        request_ids=request_ids,
        vocab_size=facts.vocab_size or int(token_ids.max()) + 1,
        model_fingerprint=facts.fingerprint,
        source=source,
    )


def _distinct(records: Sequence[Record]) -> list[Record]:
    """Without data-parallel attention every rank writes the same pass down; with it, tokens of its own."""
    kept: dict[tuple[Any, ...], Record] = {}
    for record in records:
        content = np.asarray(record["topk_ids_of_layer"]).tobytes()
        key = (record.get("forward_pass_id"), tuple(record["input_ids"]), tuple(record["positions"]), content)
        kept.setdefault(key, record)
    return list(kept.values())


def _topk_ids(record: Record, physical_to_logical: Array, source: str) -> Array:
    ids = np.asarray(record["topk_ids_of_layer"])
    expected = (len(physical_to_logical), len(record["input_ids"]))
    if ids.ndim != 3 or ids.shape[:2] != expected:
        raise ArtifactError(f"{source} has topk_ids_of_layer of shape {list(ids.shape)}, {[*expected, 8]} was expected")
    if ids.min(initial=0) < -1 or ids.max(initial=0) >= physical_to_logical.shape[1]:
        raise ArtifactError(f"{source} has physical ids outside 0 to {physical_to_logical.shape[1] - 1}")
    return ids.transpose(1, 0, 2)


def _request_ids(records: Sequence[Record], source: str) -> NDArray[np.int32]:
    lengths: list[int] = []
    for record in records:
        num_tokens, extended = len(record["input_ids"]), record.get("extend_seq_lens") or []
        lengths += [int(length) for length in extended]
        if sum(extended) > num_tokens:
            raise ArtifactError(f"{source} has a pass of {num_tokens} tokens with sequences of {list(extended)}")
        lengths += [1] * (num_tokens - sum(extended))
    return np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)


def _to_logical(physical_ids: Array, physical_to_logical: Array) -> Array:
    rows = np.arange(physical_ids.shape[1])[None, :, None]
    logical: Array = physical_to_logical[rows, physical_ids]
    return logical
