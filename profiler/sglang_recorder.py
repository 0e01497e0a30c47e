"""Read dumps of SGLang's expert distribution recorder, in all its modes.

`stat` and `stat_approx` hold counts of logical experts, `per_pass` counts of physical experts; neither can tell which
experts a token used together. `per_token` can, with physical ids, cut at the 8 columns that it has.
Physical ids are mapped back by `last_physical_to_logical_map`, right only if no rebalancing took place meanwhile.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specmoe.artifact import Array
from specmoe.errors import ArtifactError
from specmoe.profiler.counts_only import profile_of_counts
from specmoe.profiler.json_responses import source_files
from specmoe.profiler.model_facts import ModelFacts
from specmoe.profiler.routing_profile import RoutingProfile
from specmoe.profiler.routing_trace import profile_of_trace
from specmoe.profiler.sglang_per_token import trace_of_passes

Dump = dict[str, Any]


def import_recorder_dumps(
    path: Path, facts: ModelFacts, *, sample_tokens: int | None = None, seed: int = 0
) -> RoutingProfile:
    """The profile of one dump, or of a folder with the dumps of all ranks of one recording.

    Counts are relative: without data-parallel attention every rank counts the same tokens, and SGLang adds them up.
    """
    dumps = [_read(file) for file in source_files(path, (".pt",))]
    source = f"SGLang's recorder dump {path.name}"
    if all("logical_count" in dump for dump in dumps):
        return _from_counts([_logical_counts(dump, source) for dump in dumps], facts, source)
    if not all("records" in dump and "last_physical_to_logical_map" in dump for dump in dumps):
        raise ArtifactError(f"{source} mixes modes, or is none of stat, per_pass and per_token")
    maps = [np.asarray(dump["last_physical_to_logical_map"]) for dump in dumps]
    if any(not np.array_equal(maps[0], other) for other in maps):
        raise ArtifactError(f"{source} has ranks with different placements; dumps of one recording were expected")
    records = [record for dump in dumps for record in dump["records"]]
    if not records:
        raise ArtifactError(f"{source} has no records; send requests while it records")
    if all("topk_ids_of_layer" in record for record in records):
        trace = trace_of_passes(records, maps[0], facts, source)
        return profile_of_trace(trace, sample_tokens=sample_tokens, seed=seed)
    return _from_counts([_mapped_counts(record, maps[0], source) for record in records], facts, source)


def _read(file: Path) -> Dump:
    import pickle

    import torch

    try:
        dump = torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:  # whose text advises to load it all the same, code and all
        raise ArtifactError(
            f"{file} cannot be read as a file of plain tensors: it is damaged or holds other Python objects, which are "
            "never loaded; a dump of SGLang's recorder was expected"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{file} cannot be read as a file of plain tensors: {reason}") from error
    if not isinstance(dump, dict):
        raise ArtifactError(f"{file} holds a {type(dump).__name__}; a dump of SGLang's recorder was expected")
    return {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in dump.items()}


def _from_counts(counts: Sequence[Array], facts: ModelFacts, source: str) -> RoutingProfile:
    if any(one.shape != counts[0].shape for one in counts):
        raise ArtifactError(f"{source} has counts of different shapes; dumps of one recording were expected")
    total: Array = np.stack(counts).sum(axis=0, dtype=np.int64)
    return profile_of_counts(total, np.arange(len(total)), facts, source)


def _logical_counts(dump: Dump, source: str) -> Array:
    counts = np.asarray(dump["logical_count"])
    if counts.ndim == 2:
        return counts
    if counts.ndim != 3:
        raise ArtifactError(
            f"{source} has logical_count of shape {list(counts.shape)}; [passes, layers, experts] expected"
        )
    # A ring of passes in no order, its unused rows zero.
    total: Array = counts.sum(axis=0, dtype=np.int64)
    return total


def _mapped_counts(record: Dump, physical_to_logical: Array, source: str) -> Array:
    counts = np.asarray(record.get("global_physical_count"), dtype=np.int64)
    if counts.shape != physical_to_logical.shape:
        raise ArtifactError(
            f"{source} has counts of shape {list(counts.shape)} and a placement of {list(physical_to_logical.shape)}"
        )
    logical = np.zeros((len(counts), int(physical_to_logical.max()) + 1), dtype=np.int64)
    np.add.at(logical, (np.arange(len(counts))[:, None], physical_to_logical), counts)
    return logical
