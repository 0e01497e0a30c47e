"""Pair counts against one-hot products, and the check of expert ids."""

import numpy as np
import pytest

from specmoe.errors import ArtifactError
from specmoe.profiler.pair_counts import PairCounts, check_expert_ids, id_dtype


def random_routing(rng: np.random.Generator, tokens: int, layers: int, experts: int, top_k: int) -> np.ndarray:
    return rng.random((tokens, layers, experts)).argsort(axis=-1)[..., :top_k].astype(id_dtype(experts))


@pytest.mark.parametrize(
    ("tokens", "layers", "experts", "top_k"),
    [(1, 1, 1, 1), (5000, 3, 8, 3), (70, 1, 300, 5), (3, 4, 16, 16)],
    ids=lambda value: str(value),
)
def test_pair_counts_are_one_hot_products(tokens: int, layers: int, experts: int, top_k: int) -> None:
    ids = random_routing(np.random.default_rng(0), tokens, layers, experts, top_k)
    counts = PairCounts(layers, experts)
    counts.add(ids[: tokens // 2])
    counts.add(ids[tokens // 2 :])
    one_hot = np.zeros((tokens, layers, experts), dtype=np.int64)
    np.put_along_axis(one_hot, ids.astype(np.int64), 1, axis=2)
    assert counts.num_tokens == tokens
    assert np.array_equal(counts.expert_counts(), one_hot.sum(axis=0))
    assert np.array_equal(counts.coactivation_counts(), np.einsum("tli,tlj->lij", one_hot, one_hot))
    assert np.array_equal(counts.transition_counts(), np.einsum("tli,tlj->lij", one_hot[:, :-1], one_hot[:, 1:]))


def test_no_tokens_count_nothing() -> None:
    counts = PairCounts(2, 3)
    counts.add(np.zeros((0, 2, 1), dtype=np.uint8))
    assert not counts.coactivation_counts().any()


@pytest.mark.parametrize(
    ("last", "what"),
    [([0, 4], r"\[0, 4\] for token 2 in row 1"), ([3, 3], r"\[3, 3\] for token 2")],
    ids=["too large", "twice"],
)
def test_a_bad_expert_id_is_named(last: list[int], what: str) -> None:
    ids = np.array([[[0, 1], [2, 3]]] * 3, dtype=np.uint8)
    check_expert_ids(ids, 4, "expert_ids")
    ids[2, 1] = last
    with pytest.raises(ArtifactError, match=what):
        check_expert_ids(ids, 4, "expert_ids")
