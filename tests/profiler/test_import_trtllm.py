"""TensorRT-LLM's expert statistics: ranks and iterations add up, real layer numbers stay."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from specmoe.errors import ArtifactError
from specmoe.profiler.import_record import import_record
from specmoe.profiler.model_facts import ModelFacts

COUNTS = {"100_3": [3, 1, 2, 0], "100_12": [0, 2, 2, 2], "101_3": [1, 1, 2, 0], "101_12": [1, 1, 1, 1]}


@pytest.fixture
def statistics(tmp_path) -> Path:
    """Two ranks of a top-2 model with 4 experts in layers 3 and 12."""
    (tmp_path / "meta_info.json").write_text(json.dumps({"num_experts": 4, "num_experts_per_token": 2}))
    for rank in range(2):
        tensors = {key: np.array(row, dtype=np.int64) * (rank + 1) for key, row in COUNTS.items()}
        save_file(tensors, tmp_path / f"rank{rank}.safetensors")
    return tmp_path


def test_ranks_and_iterations_add_up(statistics) -> None:
    profile = import_record(statistics, "trtllm")
    assert profile.layer_ids.tolist() == [3, 12]
    assert profile.expert_counts.tolist() == [[12, 6, 12, 0], [3, 9, 9, 9]]
    assert (profile.top_k, profile.num_tokens) == (2, 15)
    assert profile.sample is None
    assert profile.coactivation_counts is None


def test_cooccurrence_files_are_read_where_they_are(statistics) -> None:
    pairs = {3: [[12, 4, 8, 0], [4, 6, 2, 0], [8, 2, 12, 2], [0, 0, 2, 0]]}
    pairs[12] = [[3, 1, 1, 1], [1, 9, 4, 4], [1, 4, 9, 4], [1, 4, 4, 9]]
    tensors = {f"7_{layer}": np.array(rows, dtype=np.int32) for layer, rows in pairs.items()}
    save_file(tensors, statistics / "cooccurrence_rank0.safetensors")
    profile = import_record(statistics, "trtllm")
    assert profile.coactivation_counts is not None
    assert profile.coactivation_counts.tolist() == [pairs[3], pairs[12]]


def test_what_is_missing_or_does_not_fit_is_refused(statistics) -> None:
    with pytest.raises(ArtifactError, match="top-2, the model given has top-4"):
        import_record(statistics, "trtllm", ModelFacts(top_k=4))
    save_file({"100_3": np.zeros(5, dtype=np.int64)}, statistics / "rank2.safetensors")
    with pytest.raises(ArtifactError, match=r"rank2\.safetensors has other iterations"):
        import_record(statistics, "trtllm")
    wrong = {key: np.zeros(5, dtype=np.int64) for key in COUNTS}
    save_file(wrong, statistics / "rank2.safetensors")
    with pytest.raises(ArtifactError, match=r"int64 \[5\]"):
        import_record(statistics, "trtllm")
    (statistics / "rank2.safetensors").write_text("damaged")
    with pytest.raises(ArtifactError, match="cannot be read as a safetensors"):
        import_record(statistics, "trtllm")
    (statistics / "rank2.safetensors").unlink()
    (statistics / "rank0.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"ranks \[1\] alone"):
        import_record(statistics, "trtllm")
    (statistics / "meta_info.json").write_text('{"num_experts": 4}')
    with pytest.raises(ArtifactError, match="lacks num_experts"):
        import_record(statistics, "trtllm")
    (statistics / "meta_info.json").unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        import_record(statistics, "trtllm")
