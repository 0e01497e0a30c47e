"""Which rank serves each of a token's experts: `dispatch_slot`'s (static), or one of a small cover of ranks (cover)."""

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.compiled import compiled
from specmoe.placement.plan import PlacementPlan, ReplicaChoice


def serve_layer(plan: PlacementPlan, layer: int, expert_ids: Array, homes: NDArray[np.int32]) -> NDArray[np.int16]:
    """int16 [T, K]: the rank that serves each (token, expert) pair at row `layer` of `plan`.

    expert_ids: unsigned integers [T, K], that layer's experts; homes: int32 [T], that layer's home ranks.
    """
    dispatch_rank, holds = plan.dispatch_rank[layer], plan.holds[layer]
    return serve(expert_ids, homes, dispatch_rank, holds, plan.topology.node_of_rank, plan.replica_choice)


def serve(
    expert_ids: Array,
    homes: NDArray[np.int32],
    dispatch_rank: NDArray[np.int32],
    holds: NDArray[np.bool_],
    node_of_rank: NDArray[np.int32],
    replica_choice: ReplicaChoice,
) -> NDArray[np.int16]:
    """int16 [T, K]: the serving rank of each (token, expert) pair of one layer.

    expert_ids: unsigned integers [T, K]; homes: int32 [T]; dispatch_rank: int32 [R, E], the rank that serves expert e
    for tokens at home on r; holds: bool [R, E]; node_of_rank: int32 [R].

    `static` is `dispatch_rank`. `cover` serves first what the home holds; then, while experts are unserved, the rank
    that holds most of them serves all of them that it holds; among equals one on the home's node, then the one that
    `dispatch_rank` names for most of the unserved, then the lowest `(rank - home) mod R`.
    """
    if replica_choice == "static" or holds.sum() == holds.shape[1]:
        return dispatch_rank.astype(np.int16)[homes[:, None], expert_ids]
    holder_offsets, holders = holders_of_expert(holds)
    experts = np.ascontiguousarray(expert_ids, dtype=np.uint16)
    table = np.ascontiguousarray(dispatch_rank, dtype=np.int32)
    rows = np.ascontiguousarray(homes, dtype=np.int32)
    return _serve_by_cover(experts, rows, table, holder_offsets, holders, node_of_rank.astype(np.int32))


def holders_of_expert(holds: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """int32 [E + 1] and int32 [P]: expert e sits on the ranks `holders[offsets[e] : offsets[e + 1]]`, increasing."""
    offsets = np.zeros(holds.shape[1] + 1, dtype=np.int32)
    offsets[1:] = np.cumsum(holds.sum(axis=0))
    return offsets, np.nonzero(holds.T)[1].astype(np.int32)


@compiled
def _serve_by_cover(
    expert_ids: NDArray[np.uint16],
    homes: NDArray[np.int32],
    dispatch_rank: NDArray[np.int32],
    holder_offsets: NDArray[np.int32],
    holders: NDArray[np.int32],
    node_of_rank: NDArray[np.int32],
) -> NDArray[np.int16]:
    num_tokens, top_k = expert_ids.shape
    ep_size = len(node_of_rank)
    served_by = np.empty((num_tokens, top_k), dtype=np.int16)
    unserved = np.empty(top_k, dtype=np.int64)
    score = np.zeros(ep_size, dtype=np.int64)
    # The rule and its tie-breaks as digits of one number, from the last: nearness after the home, experts for which
    # dispatch_rank names the rank, on the home's node, experts held.
    named, near, held = ep_size, ep_size * (top_k + 1), 2 * ep_size * (top_k + 1)
    for token in range(num_tokens):
        home = homes[token]
        left = 0
        for k in range(top_k):
            served_by[token, k] = home
            if dispatch_rank[home, expert_ids[token, k]] != home:
                unserved[left] = k
                left += 1
        while left > 0:
            best, best_score = -1, -1
            for position in range(left):
                expert = expert_ids[token, unserved[position]]
                for index in range(holder_offsets[expert], holder_offsets[expert + 1]):
                    rank = holders[index]
                    total = score[rank]
                    if total == 0:
                        total = home - rank if rank < home else home - rank + ep_size
                        total += near * (node_of_rank[rank] == node_of_rank[home])
                    total += held + named * (rank == dispatch_rank[home, expert])
                    score[rank] = total
                    if total > best_score:
                        best, best_score = rank, total
            still_left = 0
            for position in range(left):
                k = unserved[position]
                expert = expert_ids[token, k]
                unserved[still_left] = k
                still_left += 1
                for index in range(holder_offsets[expert], holder_offsets[expert + 1]):
                    score[holders[index]] = 0
                    if holders[index] == best:
                        served_by[token, k] = best
                        still_left -= 1
            left = still_left
    return served_by
