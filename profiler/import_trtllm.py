"""Import TensorRT-LLM's expert statistics: a folder with `meta_info.json` and `rank{r}.safetensors`.

Each rank's file maps "{iteration}_{layer}" to whole numbers [E], the tokens per expert; ranks and iterations add up.
Where `cooccurrence_rank{r}.safetensors` stand beside them ([E, E] under the same keys), they are read too.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.counts_only import profile_of_counts
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.routing_profile import RoutingProfile

KEY = re.compile(r"(\d+)_(\d+)")


def import_trtllm(path: Path, facts: ModelFacts) -> RoutingProfile:
    """The counts-only profile of the folder `path`; raises `ArtifactError` where a file is missing or does not fit."""
    num_experts, top_k = _meta_info(path)
    if facts.top_k not in (None, top_k):
        raise ArtifactError(f"{path} is of a model with top-{top_k}, the model given has top-{facts.top_k}")
    counts = _summed(path, "rank", (num_experts,))
    if not counts:
        raise ArtifactError(f"{path} has no rank0.safetensors; the statistics folder of TensorRT-LLM was expected")
    pairs = _summed(path, "cooccurrence_rank", (num_experts, num_experts))
    if pairs and pairs.keys() != counts.keys():
        raise ArtifactError(f"{path} has co-occurrence for layers {sorted(pairs)}, counts for {sorted(counts)}")
    layer_ids = sorted(counts)
    return profile_of_counts(
        np.stack([counts[layer] for layer in layer_ids]),
        np.array(layer_ids),
        ModelFacts(
            num_experts=facts.num_experts, top_k=top_k, vocab_size=facts.vocab_size, fingerprint=facts.fingerprint
        ),
        f"TensorRT-LLM's statistics {path.name}",
        coactivation_counts=np.stack([pairs[layer] for layer in layer_ids]) if pairs else None,
    )


def _meta_info(path: Path) -> tuple[int, int]:
    file = path / "meta_info.json"
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({error}); TensorRT-LLM's statistics folder was expected"
        ) from error
    entries = value if isinstance(value, dict) else {}
    num_experts, top_k = entries.get("num_experts"), entries.get("num_experts_per_token")
    if not isinstance(num_experts, int) or not isinstance(top_k, int) or not 1 <= top_k <= num_experts:
        raise ArtifactError(f"{file} lacks num_experts or num_experts_per_token, or they do not fit each other")
    return num_experts, top_k


def _summed(path: Path, prefix: str, shape: tuple[int, ...]) -> dict[int, Array]:
    """By layer, the sum over all iterations and ranks; empty where there is no file of that prefix."""
    files = {int(match[1]): file for file in path.iterdir() if (match := _rank_file(prefix, file))}
    if sorted(files) != list(range(len(files))):
        raise ArtifactError(f"{path} has {prefix} files of ranks {sorted(files)} alone; put those of all ranks there")
    by_file = {files[rank]: _read(files[rank]) for rank in sorted(files)}
    total: dict[int, Array] = {}
    for file, tensors in by_file.items():
        if tensors.keys() != by_file[files[0]].keys():
            raise ArtifactError(f"{file} has other iterations or layers than the other ranks' files")
        for key, counts in tensors.items():
            match = KEY.fullmatch(key)
            if match is None or counts.shape != shape or counts.dtype.kind not in "iu":
                raise ArtifactError(
                    f"{file} has {key!r}, {counts.dtype} {list(counts.shape)}; {list(shape)} was expected"
                )
            layer = int(match[2])
            total[layer] = total.get(layer, np.zeros(shape, dtype=np.int64)) + counts
    return total


def _rank_file(prefix: str, file: Path) -> re.Match[str] | None:
    return re.fullmatch(rf"{prefix}(\d+)\.safetensors", file.name)


def _read(file: Path) -> Mapping[str, Array]:
    try:
        tensors: dict[str, Array] = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file} cannot be read as a safetensors file: {error}") from error
    return tensors
