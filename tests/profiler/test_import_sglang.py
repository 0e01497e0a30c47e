"""SGLang's routed experts and the dumps of its recorder: physical ids mapped back, counts marked as such."""

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler.import_record import import_record
from specmoe.profiler.model_facts import ModelFacts

L, E, K = 3, 4, 2
MODEL = ModelFacts(num_experts=E, num_layers=L, top_k=K)
# Two replicas; the dense layer 0 has a row like all others.
MAP = np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 1], [1, 0, 3, 2, 2, 0]])


def logical(num_tokens: int, seed: int = 0) -> np.ndarray:
    """int32 [tokens, L, K], layer 0 dense and thus zero."""
    ids = np.random.default_rng(seed).random((num_tokens, L, E)).argsort(axis=-1)[..., :K].astype(np.int32)
    ids[:, 0] = 0
    return ids


def served(ids: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"routed_experts": base64.b64encode(ids.tobytes()).decode(), **more}


def test_routed_experts_of_both_routes_are_read(tmp_path) -> None:
    native = {"meta_info": served(logical(3)), "input_ids": [4, 5], "output_ids": [6, 7]}
    openai = {"choices": [{"sgl_ext": served(logical(2, 1).astype(np.uint8), routed_experts_dtype="uint8")}]}
    (tmp_path / "a.json").write_text(json.dumps([native, openai]))
    profile = import_record(tmp_path / "a.json", "sglang", MODEL)
    assert profile.layer_ids.tolist() == [1, 2]
    assert profile.sample is not None
    assert np.array_equal(profile.sample.expert_ids, np.concatenate([logical(3), logical(2, 1)])[:, 1:])
    assert profile.sample.token_ids.tolist() == [4, 5, 6, -1, -1]


@pytest.mark.parametrize(
    ("record", "facts", "message"),
    [
        (served(logical(3)), ModelFacts(num_experts=E, top_k=K), "give --num-layers N"),
        (served(logical(3)), ModelFacts(num_experts=E, num_layers=5, top_k=K), "no multiple of the 40"),
        (served(logical(3), routed_experts_dtype="int4"), MODEL, "known are"),
        ({"routed_experts": "?"}, MODEL, "not base64"),
        ({"routed_experts": base64.b64encode(b"\x93NUMPY").decode()}, MODEL, "use --from vllm"),
    ],
    ids=["layers unknown", "another model", "unknown type", "no base64", "vLLM's"],
)
def test_routed_experts_that_do_not_fit_are_refused(record, facts: ModelFacts, message: str, tmp_path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"meta_info": record}))
    with pytest.raises((ArtifactError, UsageError), match=message):
        import_record(tmp_path / "a.json", "sglang", facts)


def test_stat_counts_are_summed_over_the_ring_and_marked_as_counts(tmp_path) -> None:
    counts = np.zeros((5, L, E), dtype=np.int32)
    counts[3, 1:] = [[4, 0, 1, 1], [2, 2, 2, 0]]
    counts[1, 1:] = [[1, 1, 0, 0], [0, 0, 0, 2]]
    torch.save({"rank": 0, "logical_count": torch.from_numpy(counts)}, tmp_path / "stat.pt")
    profile = import_record(tmp_path / "stat.pt", "sglang", ModelFacts(top_k=K))
    assert profile.layer_ids.tolist() == [1, 2]
    assert profile.expert_counts.tolist() == [[5, 1, 1, 1], [2, 2, 2, 2]]
    assert profile.num_tokens == 4
    assert profile.sample is None
    assert profile.coactivation_counts is None
    with pytest.raises(UsageError, match="give --top-k N"):
        import_record(tmp_path / "stat.pt", "sglang", ModelFacts())


def test_physical_counts_are_mapped_back_and_replicas_added(tmp_path) -> None:
    physical = np.zeros((L, 6), dtype=np.int32)
    physical[1] = [5, 0, 1, 2, 3, 4]
    for rank in range(2):
        record = {"forward_pass_id": 1, "rank": rank, "global_physical_count": torch.from_numpy(physical)}
        dump = {"records": [record], "last_physical_to_logical_map": torch.from_numpy(MAP)}
        torch.save(dump, tmp_path / f"{rank}.pt")
    profile = import_record(tmp_path, "sglang", ModelFacts(top_k=K))
    # Layer 1 has slots of experts 3 2 1 0 3 1.
    assert profile.expert_counts.tolist() == [[4, 10, 0, 16]]
    assert profile.layer_ids.tolist() == [1]


def physical_ids(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int32 [L, tokens, 8]: a random slot of each expert, -1 in the dense layer and the unused columns."""
    columns = np.full((L, len(ids), 8), -1, dtype=np.int32)
    for token, row, k in np.ndindex(ids.shape):
        if row > 0:
            columns[row, token, k] = rng.choice(np.flatnonzero(MAP[row] == ids[token, row, k]))
    return columns


def per_token(ids: np.ndarray, rank: int = 0, **changes: Any) -> dict[str, Any]:
    record = {
        "forward_pass_id": 7,
        "rank": rank,
        "input_ids": list(range(100, 100 + len(ids))),
        "positions": list(range(len(ids))),
        "extend_seq_lens": [2, 1],
        "forward_mode": 1,
        "topk_ids_of_layer": torch.from_numpy(physical_ids(ids, np.random.default_rng(3))),
        "global_physical_count": torch.zeros((L, 6), dtype=torch.int32),
    }
    return {"records": [record | changes], "last_physical_to_logical_map": torch.from_numpy(MAP)}


def test_per_token_records_become_a_trace_of_logical_experts(tmp_path) -> None:
    torch.save(per_token(logical(5)), tmp_path / "0.pt")
    profile = import_record(tmp_path / "0.pt", "sglang")
    assert (profile.num_logical_experts, profile.top_k) == (E, K)
    assert profile.layer_ids.tolist() == [1, 2]
    assert profile.sample is not None
    assert np.array_equal(profile.sample.expert_ids, logical(5)[:, 1:])
    assert profile.sample.token_ids.tolist() == [100, 101, 102, 103, 104]
    # Two prefilled sequences, then two decoded tokens of unknown requests.
    assert profile.sample.request_ids.tolist() == [0, 0, 1, 2, 3]


def test_ranks_that_saw_the_same_pass_count_once_and_others_add_up(tmp_path) -> None:
    for rank in range(2):
        torch.save(per_token(logical(5), rank), tmp_path / f"{rank}.pt")
    assert import_record(tmp_path, "sglang").num_tokens == 5
    torch.save(per_token(logical(4, 9), 1), tmp_path / "1.pt")
    assert import_record(tmp_path, "sglang").num_tokens == 9


def test_padding_tokens_are_dropped(tmp_path) -> None:
    ids = torch.from_numpy(physical_ids(logical(5), np.random.default_rng(0)))
    ids[:, 4] = -1
    torch.save(per_token(logical(5), topk_ids_of_layer=ids), tmp_path / "0.pt")
    assert import_record(tmp_path / "0.pt", "sglang").num_tokens == 4


def test_a_model_with_more_experts_a_token_than_are_recorded_is_refused(tmp_path) -> None:
    torch.save(per_token(logical(5)), tmp_path / "0.pt")
    with pytest.raises(ArtifactError, match="holds 8 experts a token, the model uses 10"):
        import_record(tmp_path / "0.pt", "sglang", ModelFacts(top_k=10))


def test_ids_outside_the_placement_and_uneven_rows_are_refused(tmp_path) -> None:
    ids = torch.from_numpy(physical_ids(logical(5), np.random.default_rng(0)))
    ids[1, 2, 1] = -1
    torch.save(per_token(logical(5), topk_ids_of_layer=ids), tmp_path / "0.pt")
    with pytest.raises(ArtifactError, match="different numbers of experts"):
        import_record(tmp_path / "0.pt", "sglang")
    ids[1, 2, 1] = 6
    torch.save(per_token(logical(5), topk_ids_of_layer=ids), tmp_path / "0.pt")
    with pytest.raises(ArtifactError, match="physical ids outside 0 to 5"):
        import_record(tmp_path / "0.pt", "sglang")


class Hostile:
    """Unpickled, it would run a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys) -> None:
    torch.save({"logical_count": Hostile()}, tmp_path / "bad.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("bad.pt", "text.pt"):
        with pytest.raises(ArtifactError, match=f"{name} cannot be read as a file of plain tensors") as refused:
            import_record(tmp_path / name, "sglang", MODEL)
        # PyTorch's own text says how to load it all the same.
        assert "Weights only" not in str(refused.value)
    assert "run" not in capsys.readouterr().out


def test_dumps_that_do_not_belong_together_are_refused(tmp_path) -> None:
    torch.save(per_token(logical(5)), tmp_path / "0.pt")
    torch.save({"logical_count": torch.ones((1, L, E))}, tmp_path / "1.pt")
    with pytest.raises(ArtifactError, match="mixes modes"):
        import_record(tmp_path, "sglang", MODEL)
    other = per_token(logical(5), 1) | {"last_physical_to_logical_map": torch.from_numpy(MAP[:, ::-1].copy())}
    torch.save(other, tmp_path / "1.pt")
    with pytest.raises(ArtifactError, match="different placements"):
        import_record(tmp_path, "sglang", MODEL)
