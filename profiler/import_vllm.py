"""Import vLLM's routed experts: the JSON answers of its server, or the arrays of `LLM.generate` saved as .npy.

A server started to return routed experts adds to each choice `routed_experts`: base64 of an .npy file, uint8 | uint16
[tokens, decoder layers, K] with logical ids. Token ids are taken from `prompt_token_ids` and `token_ids` where the
request asked for them.
"""

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.json_responses import json_responses, source_files
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.npz_reader import parse_npy
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_trace import profile_of_trace
from specmoe.profiler.served_requests import ServedRequest, known_tokens, trace_of_requests


def import_vllm(path: Path, facts: ModelFacts, *, sample_tokens: int | None = None, seed: int = 0) -> RoutingProfile:
    """The profile of the routed experts in `path`: a .json, .jsonl or .npy file, or a folder of one of these kinds."""
    arrays = path.suffix == ".npy" or (path.is_dir() and any(path.glob("*.npy")))
    requests = list(_from_arrays(path) if arrays else _from_responses(path))
    trace = trace_of_requests(requests, facts, f"vLLM's routed experts in {path.name}")
    return profile_of_trace(trace, sample_tokens=sample_tokens, seed=seed)


def _from_arrays(path: Path) -> Iterator[ServedRequest]:
    for file in source_files(path, (".npy",)):
        expert_ids = _read_npy(str(file), file.read_bytes())
        yield ServedRequest(where=str(file), expert_ids=expert_ids, token_ids=known_tokens(None, len(expert_ids)))


def _from_responses(path: Path) -> Iterator[ServedRequest]:
    for place, response in json_responses(path):
        choices = response.get("choices", response.get("outputs", [response]))
        for at, choice in enumerate(choices if isinstance(choices, list) else []):
            if not isinstance(choice, dict) or choice.get("routed_experts") is None:
                continue
            where = f"{place} choice {at}"
            expert_ids = _decode(where, choice["routed_experts"])
            prompt = choice.get("prompt_token_ids", response.get("prompt_token_ids"))
            answer = choice.get("token_ids")
            both = [*prompt, *answer] if isinstance(prompt, list) and isinstance(answer, list) else None
            yield ServedRequest(where=where, expert_ids=expert_ids, token_ids=known_tokens(both, len(expert_ids)))


def _decode(where: str, value: Any) -> Array:
    if not isinstance(value, str):
        raise ArtifactError(f"{where} has routed_experts that are no text; base64 of an .npy file was expected")
    try:
        content = base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ArtifactError(f"{where} has routed_experts that are not base64: {error}") from error
    if not content.startswith(b"\x93NUMPY"):
        raise ArtifactError(
            f"{where} has routed_experts without an .npy header; if SGLang wrote them, use --from sglang"
        )
    return _read_npy(where, content)


def _read_npy(where: str, content: bytes) -> Array:
    try:
        array = parse_npy(content)
    except ValueError as error:
        raise ArtifactError(f"{where} has a damaged .npy array: {error}") from error
    if array.ndim != 3 or array.dtype.kind not in "iu":
        raise ArtifactError(
            f"{where} has an array of {array.dtype} {list(array.shape)}; whole numbers [tokens, layers, top-k] expected"
        )
    return array
