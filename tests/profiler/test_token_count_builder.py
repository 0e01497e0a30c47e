"""Sparse token counts against a dictionary, however the stream is cut into blocks."""

from collections import Counter

import numpy as np
import pytest

from specmoe.profiler.token_count_builder import TokenCountBuilder

L, E, K = 3, 40, 4


def dense(expert_ids: np.ndarray, token_ids: np.ndarray) -> Counter[tuple[int, int, int]]:
    counted: Counter[tuple[int, int, int]] = Counter()
    for token, rows in zip(token_ids.tolist(), expert_ids.tolist(), strict=True):
        if token >= 0:
            counted.update((row, token, expert) for row, experts in enumerate(rows) for expert in experts)
    return counted


@pytest.mark.parametrize("block_bytes", [1, 500, 3_000, 10**9])
def test_blocks_and_merges_lose_nothing(block_bytes: int) -> None:
    rng = np.random.default_rng(1)
    expert_ids = rng.random((400, L, E)).argsort(axis=-1)[..., :K].astype(np.uint8)
    token_ids = np.minimum(rng.geometric(0.1, 400) * 7 - 8, 150).astype(np.int32)
    assert (token_ids < 0).any()
    builder = TokenCountBuilder(L, E, block_bytes=block_bytes)
    for start in range(0, 400, 30):
        builder.add(expert_ids[start : start + 30], token_ids[start : start + 30])
    table = builder.finish()
    table.check(L, E)
    N = len(table.token_ids)
    found = {}
    for row in range(L * N):
        entries = slice(table.row_offsets[row], table.row_offsets[row + 1])
        experts = table.expert_ids[entries].tolist()
        assert experts == sorted(experts)
        for expert, count in zip(experts, table.counts[entries].tolist(), strict=True):
            found[row // N, int(table.token_ids[row % N]), expert] = count
    assert found == dense(expert_ids, token_ids)


def test_a_stream_without_known_tokens_gives_an_empty_table() -> None:
    builder = TokenCountBuilder(L, E)
    builder.finish().check(L, E)
    builder.add(np.zeros((2, L, 1), dtype=np.uint8), np.array([-1, -1], dtype=np.int32))
    table = builder.finish()
    table.check(L, E)
    assert len(table.token_ids) == 0


def test_few_tables_are_held_at_a_time() -> None:
    rng = np.random.default_rng(2)
    builder = TokenCountBuilder(L, E, block_bytes=1)
    for _ in range(200):
        ids = rng.random((8, L, E)).argsort(axis=-1)[..., :K].astype(np.uint8)
        builder.add(ids, rng.integers(0, 1000, 8).astype(np.int32))
        assert len(builder._tables) <= 10
