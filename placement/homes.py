"""Home ranks: the rank on which each token's hidden state sits when a layer's dispatch starts.

`dp` keeps a request on one rank for all layers and picks that rank by the request's pull, within a bound on how uneven
the ranks may fill. `tp` deals every batch of 4,096 tokens out in equal slices, anew at each layer, by a token table.
"""

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.errors import UsageError
from specmoe.placement.plan import PlacementPlan
from specmoe.profiler.routing_profile import RoutingSample

TP_BATCH_TOKENS = 4096
NO_RANK = -1


def homes_of(plan: PlacementPlan, sample: RoutingSample) -> NDArray[np.int32]:
    """int32 [L, T], read-only: the home rank of each of the sample's tokens at each layer of `plan`."""
    if plan.attention == "dp":
        homes = dp_homes(sample.request_ids, sample.token_ids, plan.token_affinity, sample.num_tokens, plan.ep_size)
        return np.broadcast_to(homes, (plan.num_layers, sample.num_tokens))
    tables = plan.token_to_rank, plan.token_confidence
    return tp_homes(sample.token_ids, *tables, sample.num_tokens, plan.num_layers, plan.ep_size)


def dp_homes(
    request_ids: NDArray[np.int32] | None,
    token_ids: NDArray[np.int32] | None,
    token_affinity: NDArray[np.float16] | None,
    num_tokens: int,
    ep_size: int,
) -> NDArray[np.int32]:
    """int32 [T]: requests in trace order, each to the rank that pulls it most among those that are not too full.

    request_ids, token_ids: int32 [T] or None; token_affinity: float16 [V, R] or None. A rank is not too full while its
    tokens exceed the least-filled rank's by no more than the longest request so far, this one included. Ties go to the
    least-filled rank, then the lowest number. Without request ids every token is its own request.
    """
    starts = request_starts(request_ids, num_tokens)
    pull = request_pulls(starts, token_ids, token_affinity, num_tokens, ep_size)
    lengths = np.diff(starts, append=num_tokens)
    return np.repeat(assign_requests(lengths, pull), lengths)


def request_starts(request_ids: NDArray[np.int32] | None, num_tokens: int) -> NDArray[np.int64]:
    """int64 [N], increasing: the first row of each request (a run of equal ids); every row without request ids."""
    if request_ids is None:
        return np.arange(num_tokens, dtype=np.int64)
    if len(request_ids) != num_tokens:
        raise UsageError(f"request_ids has {len(request_ids)} entries, one per token ({num_tokens}) was expected")
    is_start = np.ones(num_tokens, dtype=np.bool_)
    is_start[1:] = request_ids[1:] != request_ids[:-1]
    return np.flatnonzero(is_start)


def request_pulls(
    starts: NDArray[np.int64],
    token_ids: NDArray[np.int32] | None,
    token_affinity: NDArray[np.float16] | None,
    num_tokens: int,
    ep_size: int,
) -> NDArray[np.float64]:
    """float64 [N, R]: the affinity to each rank, summed over the first half (rounded up) of each request's tokens.

    A token id outside the table pulls nowhere. Sums of float16 values are exact in float64, so their order is free.
    """
    pull = np.zeros((len(starts), ep_size), dtype=np.float64)
    if token_affinity is None or token_ids is None:
        return pull
    lengths = np.diff(starts, append=num_tokens)
    request = np.repeat(np.arange(len(starts)), lengths)
    position = np.arange(num_tokens) - starts[request]
    counts = (position < (lengths[request] + 1) // 2) & (token_ids >= 0) & (token_ids < len(token_affinity))
    known = token_affinity[token_ids[counts]].astype(np.float64)
    for rank in range(ep_size):
        pull[:, rank] = np.bincount(request[counts], weights=known[:, rank], minlength=len(starts))
    return pull


@compiled
def assign_requests(lengths: NDArray[np.int64], pull: NDArray[np.float64]) -> NDArray[np.int32]:
    """int32 [N]: the rank of each request, by the rule of `dp_homes`; lengths: int64 [N], pull: float64 [N, R]."""
    num_requests, ep_size = pull.shape
    filled = np.zeros(ep_size, dtype=np.int64)
    home = np.empty(num_requests, dtype=np.int32)
    longest = 0
    for request in range(num_requests):
        longest = max(longest, lengths[request])
        home[request] = strongest_pull(pull[request], filled, longest)
        filled[home[request]] += lengths[request]
    return home


@compiled
def strongest_pull(pull: NDArray[np.float64], filled: NDArray[np.int64], longest: int) -> int:
    """The rank for one request by the rule of `dp_homes`; pull: float64 [R]; filled: int64 [R], tokens so far; longest:
    of the requests so far, this one included.
    """
    ceiling = filled.min() + longest
    best = -1
    for rank in range(len(filled)):
        if filled[rank] > ceiling:
            continue
        is_tie = best >= 0 and pull[rank] == pull[best]
        if best < 0 or pull[rank] > pull[best] or (is_tie and filled[rank] < filled[best]):
            best = rank
    return best


def tp_homes(
    token_ids: NDArray[np.int32] | None,
    token_to_rank: NDArray[np.int16] | None,
    token_confidence: NDArray[np.float16] | None,
    num_tokens: int,
    num_layers: int,
    ep_size: int,
) -> NDArray[np.int32]:
    """int32 [L, T]: every batch of 4,096 tokens dealt out in equal slices, the extra tokens to the low ranks.

    token_ids: int32 [T] or None; token_to_rank: int16 [L, V] and token_confidence: float16 [L, V], both or neither.
    Tokens with a table entry are seated first, by falling confidence, then trace order, while their rank's slice has
    room; then all others, in trace order, on the rank with most room, then the lowest number.
    """
    if token_to_rank is None or token_confidence is None or token_ids is None or token_to_rank.shape[1] == 0:
        unknown = np.full(num_tokens, NO_RANK, dtype=np.int16)
        homes = seat_tokens(unknown, np.zeros(num_tokens, dtype=np.float16), ep_size)
        return np.broadcast_to(homes, (num_layers, num_tokens))
    in_table = (token_ids >= 0) & (token_ids < token_to_rank.shape[1])
    column = np.where(in_table, token_ids, 0)
    homes = np.empty((num_layers, num_tokens), dtype=np.int32)
    for layer in range(num_layers):
        wanted = np.where(in_table, token_to_rank[layer, column], np.int16(NO_RANK))
        homes[layer] = seat_tokens(wanted, token_confidence[layer, column], ep_size)
    return homes


def seat_tokens(wanted: NDArray[np.int16], confidence: NDArray[np.float16], ep_size: int) -> NDArray[np.int32]:
    """int32 [T]: one layer of `tp_homes`; wanted: int16 [T], the table's rank or -1; confidence: float16 [T], >= 0."""
    homes = np.empty(len(wanted), dtype=np.int32)
    # The bits of a float16 that is not negative rise with its value; adding zero turns -0 into 0.
    falling = np.uint16(0xFFFF) - (confidence + np.float16(0)).view(np.uint16)
    for start in range(0, len(wanted), TP_BATCH_TOKENS):
        batch = slice(start, start + TP_BATCH_TOKENS)
        order = np.argsort(falling[batch], kind="stable")
        _seat_batch(wanted[batch], order, ep_size, homes[batch])
    return homes


@compiled
def _seat_batch(wanted: NDArray[np.int16], order: NDArray[np.int64], ep_size: int, homes: NDArray[np.int32]) -> None:
    """Fill `homes` [B] for one batch; order: its rows by falling confidence, ties in trace order."""
    size = len(wanted)
    room = np.full(ep_size, size // ep_size, dtype=np.int64)
    room[: size % ep_size] += 1
    homes[:] = -1
    for row in order:
        rank = wanted[row]
        if rank >= 0 and room[rank] > 0:
            homes[row] = rank
            room[rank] -= 1
    for row in range(size):
        if homes[row] < 0:
            rank = np.argmax(room)
            homes[row] = rank
            room[rank] -= 1
