"""vLLM's routed experts: arrays and answers, dense layers left out, what is refused."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.errors import ArtifactError, UsageError
from specmoe.profiler.import_record import import_record
from specmoe.profiler.model_facts import ModelFacts

E, K = 8, 2
MODEL = ModelFacts(num_experts=E)


def routing(num_tokens: int, seed: int = 0) -> np.ndarray:
    """uint8 [tokens, 3 layers, K], the first layer dense and thus zero."""
    ids = np.random.default_rng(seed).random((num_tokens, 3, E)).argsort(axis=-1)[..., :K].astype(np.uint8)
    ids[:, 0] = 0
    return ids


def encoded(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return base64.b64encode(buffer.getvalue()).decode()


def answer(array: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "routed_experts": encoded(array), **more}]}


def write(path: Path, *answers: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in answers))
    return path


def test_answers_become_requests_and_dense_layers_have_no_row(tmp_path) -> None:
    tokens = {"prompt_token_ids": [5, 6], "token_ids": [7, 8]}
    source = write(tmp_path / "a.jsonl", answer(routing(3, 1), **tokens), answer(routing(4, 2)))
    profile = import_record(source, "vllm", MODEL)
    assert profile.layer_ids.tolist() == [1, 2]
    assert profile.sample is not None
    assert profile.sample.request_ids.tolist() == [0] * 3 + [1] * 4
    assert np.array_equal(profile.sample.expert_ids, np.concatenate([routing(3, 1), routing(4, 2)])[:, 1:])
    # The last token is sampled and never run; the second answer says nothing of its tokens.
    assert profile.sample.token_ids.tolist() == [5, 6, 7, -1, -1, -1, -1]
    assert profile.token_counts is not None
    assert profile.token_counts.token_ids.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PK\x03\x04\xb8", "is not JSON text; the engine's answers"), (b"[" * 100_000, "is not JSON: ")],
    ids=["binary", "deep"],
)
def test_a_file_that_is_no_json_is_named(content: bytes, message: str, tmp_path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=f"a.json {message}"):
        import_record(tmp_path / "a.json", "vllm", MODEL)


def test_saved_arrays_of_a_folder_are_requests_too(tmp_path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", routing(number + 1, number))
    profile = import_record(tmp_path, "vllm", MODEL)
    assert profile.num_tokens == 6
    assert profile.vocab_size is None
    assert profile.sample is not None
    assert profile.sample.request_ids.tolist() == [0, 1, 1, 2, 2, 2]


def test_the_served_model_may_be_named_as_on_the_hub(tiny_model, monkeypatch) -> None:
    from specmoe.profiler import model_facts

    folder = tiny_model("mixtral").folder
    monkeypatch.setattr(model_facts, "model_folder", {"maker/model": folder}.__getitem__)
    assert ModelFacts.gather("maker/model").num_experts == 8


def test_the_served_checkpoint_supplies_sizes_and_fingerprint(tmp_path, tiny_model) -> None:
    from specmoe.checkpoint import open_checkpoint

    folder = tiny_model("mixtral").folder
    source = write(tmp_path / "a.json", answer(routing(3)))
    profile = import_record(source, "vllm", ModelFacts.gather(folder))
    assert profile.num_logical_experts == 8
    assert profile.model_fingerprint == open_checkpoint(folder).fingerprint
    with pytest.raises(UsageError, match="num_experts is 9"):
        ModelFacts.gather(folder, num_experts=9)


REFUSED: dict[str, tuple[Any, ModelFacts, str]] = {
    "experts unknown": (answer(routing(3)), ModelFacts(), "give --num-experts N, or --model"),
    "too few experts": (answer(routing(9)), ModelFacts(num_experts=4), "distinct ids from 0 to 3"),
    "8 bits for 512 experts": (answer(routing(3)), ModelFacts(num_experts=512), "ids of 8 bits"),
    "another top-k": (answer(routing(3)), ModelFacts(num_experts=E, top_k=3), "has top_k 2, the model has 3"),
    "no routed experts": ({"choices": [{"text": "x"}]}, MODEL, "holds no routed_experts"),
    "a pickle": (answer(np.array([None], dtype=object)), MODEL, "damaged .npy array"),
    "SGLang's": ({"choices": [{"routed_experts": "AAAA"}]}, MODEL, "use --from sglang"),
    "no base64": ({"choices": [{"routed_experts": "?"}]}, MODEL, "not base64"),
    "numbers": ({"choices": [{"routed_experts": 5}]}, MODEL, "that are no text"),
    "two dimensions": (answer(np.zeros((3, 2), dtype=np.uint8)), MODEL, r"whole numbers \[tokens, layers, top-k\]"),
    "top-1 and zeros": (answer(routing(3)[..., :1]), MODEL, "layer of zeros"),
    "no object": ([5], MODEL, "is not a JSON object"),
    "a token that was not recorded": (answer(routing(3) * np.array([[[1]], [[1]], [[0]]], dtype=np.uint8)), MODEL,
                                      r"\[0, 0\] for token 2"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "facts", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused(content: Any, facts: ModelFacts, message: str, tmp_path) -> None:
    source = write(tmp_path / "a.json", content)
    with pytest.raises((ArtifactError, UsageError), match=message):
        import_record(source, "vllm", facts)


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path) -> None:
    content = base64.b64decode(encoded(routing(3)))
    honest, claim = b"(3, 3, 2), }" + b" " * 9, b"(3000000000, 3, 2), }"
    assert honest in content
    dishonest = base64.b64encode(content.replace(honest, claim)).decode()
    source = write(tmp_path / "a.json", {"choices": [{"routed_experts": dishonest}]})
    with pytest.raises(ArtifactError, match="declares uint8"):
        import_record(source, "vllm", MODEL)


def test_answers_of_different_models_are_refused(tmp_path) -> None:
    source = write(tmp_path / "a.jsonl", answer(routing(3)), answer(routing(3)[:, 1:]))
    with pytest.raises(ArtifactError, match=r"a\.jsonl:2 choice 0 has \[layers, top-k\] \[2, 2\]"):
        import_record(source, "vllm", MODEL)


def test_options_that_a_source_has_no_use_for_are_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="leave the options about the model out"):
        import_record(tmp_path / "a.npz", "npz", MODEL)
    with pytest.raises(UsageError, match="does not exist"):
        import_record(tmp_path / "absent", "vllm", MODEL)
    with pytest.raises(UsageError, match="leave sample_tokens out"):
        import_record(tmp_path, "trtllm", MODEL, sample_tokens=5)
