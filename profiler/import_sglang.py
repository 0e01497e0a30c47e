"""Import what SGLang records: routed experts in its JSON answers, or dumps of its expert distribution recorder (.pt).

Routed experts are base64 of raw int32 [tokens, decoder layers, K] with logical ids, without their shape: the number
of layers and K come from the model. They stand in `meta_info` of /generate and in `choices[i].sgl_ext` of the OpenAI
routes.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.json_responses import json_responses
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_trace import profile_of_trace
from specmoe.profiler.served_requests import ServedRequest, known_tokens, trace_of_requests
from specmoe.profiler.sglang_recorder import import_recorder_dumps

DTYPES = {"int32": np.int32, "uint8": np.uint8, "uint16": np.uint16}


def import_sglang(path: Path, facts: ModelFacts, *, sample_tokens: int | None = None, seed: int = 0) -> RoutingProfile:
    """The profile of `path`: a .json or .jsonl file of answers, a .pt dump, or a folder of one of these kinds."""
    if path.suffix == ".pt" or (path.is_dir() and any(path.glob("*.pt"))):
        return import_recorder_dumps(path, facts, sample_tokens=sample_tokens, seed=seed)
    requests = list(_requests(path, facts))
    trace = trace_of_requests(requests, facts, f"SGLang's routed experts in {path.name}")
    return profile_of_trace(trace, sample_tokens=sample_tokens, seed=seed)


def _requests(path: Path, facts: ModelFacts) -> Iterator[ServedRequest]:
    for place, response in json_responses(path):
        for where, record in _records(place, response):
            if record.get("routed_experts") is None:
                continue
            expert_ids = _decode(where, record, facts)
            token_ids = known_tokens(_token_ids(response), len(expert_ids))
            yield ServedRequest(where=where, expert_ids=expert_ids, token_ids=token_ids)


def _records(place: str, response: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(response.get("meta_info"), dict):
        yield place, response["meta_info"]
    choices = response.get("choices")
    for at, choice in enumerate(choices if isinstance(choices, list) else []):
        extension = choice.get("sgl_ext") if isinstance(choice, dict) else None
        if isinstance(extension, dict):
            yield f"{place} choice {at}", extension


def _token_ids(response: dict[str, Any]) -> list[Any] | None:
    prompt, answer = response.get("input_ids"), response.get("output_ids")
    return [*prompt, *answer] if isinstance(prompt, list) and isinstance(answer, list) else None


def _decode(where: str, record: dict[str, Any], facts: ModelFacts) -> Array:
    num_layers = facts.require("num_layers", f"{where}, SGLang's routed experts,")
    top_k = facts.require("top_k", f"{where}, SGLang's routed experts,")
    dtype = DTYPES.get(str(record.get("routed_experts_dtype", "int32")))
    if dtype is None:
        raise ArtifactError(f"{where} has routed_experts of {record['routed_experts_dtype']}; known are {[*DTYPES]}")
    try:
        content = base64.b64decode(record["routed_experts"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ArtifactError(f"{where} has routed_experts that are not base64: {error}") from error
    if content.startswith(b"\x93NUMPY"):
        raise ArtifactError(f"{where} has routed_experts with an .npy header; if vLLM wrote them, use --from vllm")
    row_bytes = num_layers * top_k * np.dtype(dtype).itemsize
    if len(content) == 0 or len(content) % row_bytes:
        raise ArtifactError(
            f"{where} has {len(content)} bytes of routed experts, no multiple of the {row_bytes} that a token takes "
            f"with {num_layers} layers and top-{top_k}; is it another model's?"
        )
    return np.frombuffer(content, dtype=dtype).reshape(-1, num_layers, top_k)
