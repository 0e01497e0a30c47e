"""Build and merge `TokenExpertCounts`, the sparse counts of (layer, token id, expert)."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.compiled import compiled
from specmoe.profiler.token_counts import TokenExpertCounts


def count_tokens(expert_ids: Array, token_ids: NDArray[np.int32], num_logical_experts: int) -> TokenExpertCounts:
    """The counts of `expert_ids` uint8 | uint16 [T, L, K] by `token_ids` int32 [T]; negative ids are unknown, left out.

    Linear in T * L * K: tokens are put in order of their id once, then each run of equal ids fills one row per layer.
    """
    order = np.argsort(token_ids, kind="stable")
    order = order[np.searchsorted(token_ids[order], 0) :]
    ordered_ids = token_ids[order]
    starts = np.flatnonzero(np.diff(ordered_ids, prepend=-1))
    bounds = np.append(starts, len(order))
    by_layer = np.ascontiguousarray(expert_ids[order].transpose(1, 0, 2))
    offsets, experts, counts = _fill_rows(by_layer, bounds, num_logical_experts)
    return TokenExpertCounts(
        token_ids=ordered_ids[starts].astype(np.int32), row_offsets=offsets, expert_ids=experts, counts=counts
    )


def merge_token_counts(first: TokenExpertCounts, second: TokenExpertCounts) -> TokenExpertCounts:
    """The sum of two tables of the same model, linear in their sizes."""
    token_ids = np.union1d(first.token_ids, second.token_ids)
    places = [np.full(len(token_ids), -1, dtype=np.int64) for _ in range(2)]
    for place, table in zip(places, (first, second), strict=True):
        place[np.searchsorted(token_ids, table.token_ids)] = np.arange(len(table.token_ids))
    offsets, experts, counts = _merge_rows(
        *(places[0], first.row_offsets, first.expert_ids, first.counts),
        *(places[1], second.row_offsets, second.expert_ids, second.counts),
    )
    return TokenExpertCounts(token_ids=token_ids, row_offsets=offsets, expert_ids=experts, counts=counts)


def subtract_token_counts(whole: TokenExpertCounts, part: TokenExpertCounts) -> TokenExpertCounts:
    """The counts of `whole` less those of `part`, which are among them."""
    rest = merge_token_counts(whole, replace(part, counts=-part.counts))
    if len(rest.token_ids) == 0:
        return rest
    left = rest.counts > 0
    offsets = np.append(0, np.cumsum(left))[rest.row_offsets]
    by_layer = np.diff(offsets).reshape(-1, len(rest.token_ids))
    used = by_layer.any(axis=0)
    return TokenExpertCounts(
        token_ids=rest.token_ids[used],
        row_offsets=np.append(0, np.cumsum(by_layer[:, used])).astype(np.int64),
        expert_ids=rest.expert_ids[left],
        counts=rest.counts[left],
    )


@compiled
def _fill_rows(by_layer: Array, bounds: Array, num_logical_experts: int) -> tuple[Array, Array, Array]:
    L, T, K = by_layer.shape
    N = len(bounds) - 1
    offsets = np.zeros(L * N + 1, dtype=np.int64)
    experts = np.empty(L * T * K, dtype=np.uint16)
    counts = np.empty(L * T * K, dtype=np.int64)
    scratch = np.zeros(num_logical_experts, dtype=np.int64)
    size = 0
    for layer in range(L):
        for row in range(N):
            start = size
            for token in range(bounds[row], bounds[row + 1]):
                for k in range(K):
                    expert = np.int64(by_layer[layer, token, k])
                    if scratch[expert] == 0:
                        experts[size] = expert
                        size += 1
                    scratch[expert] += 1
            experts[start:size].sort()
            for at in range(start, size):
                counts[at] = scratch[experts[at]]
                scratch[experts[at]] = 0
            offsets[layer * N + row + 1] = size
    return offsets, experts[:size].copy(), counts[:size].copy()


@compiled
def _merge_rows(
    place_a: Array, offsets_a: Array, experts_a: Array, counts_a: Array,
    place_b: Array, offsets_b: Array, experts_b: Array, counts_b: Array,
) -> tuple[Array, Array, Array]:  # fmt: skip
    N, N_a, N_b = len(place_a), (place_a >= 0).sum(), (place_b >= 0).sum()
    L = (len(offsets_a) - 1) // N_a if N_a else (len(offsets_b) - 1) // max(N_b, 1)
    offsets = np.zeros(L * N + 1, dtype=np.int64)
    experts = np.empty(len(experts_a) + len(experts_b), dtype=np.uint16)
    counts = np.empty(len(experts), dtype=np.int64)
    size = 0
    for layer in range(L):
        for row in range(N):
            a = end_a = b = end_b = 0
            if place_a[row] >= 0:
                a, end_a = offsets_a[layer * N_a + place_a[row]], offsets_a[layer * N_a + place_a[row] + 1]
            if place_b[row] >= 0:
                b, end_b = offsets_b[layer * N_b + place_b[row]], offsets_b[layer * N_b + place_b[row] + 1]
            while a < end_a or b < end_b:
                take_a = a < end_a and (b >= end_b or experts_a[a] <= experts_b[b])
                take_b = b < end_b and (a >= end_a or experts_b[b] <= experts_a[a])
                experts[size] = experts_a[a] if take_a else experts_b[b]
                counts[size] = (counts_a[a] if take_a else 0) + (counts_b[b] if take_b else 0)
                a, b, size = a + take_a, b + take_b, size + 1
            offsets[layer * N + row + 1] = size
    return offsets, experts[:size].copy(), counts[:size].copy()
