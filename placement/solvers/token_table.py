"""The token table of one layer: where each token id should start, and how sure that is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import seat_tokens
from specmoe.placement.solvers.home_prices import priced_shares
from specmoe.placement.solvers.nearest_tokens import NO_TOKEN, WELL_KNOWN
from specmoe.placement.solvers.token_rows import TokenRows

# An id is believed as if the mean unseen token had been seen this many times as well.
PRIOR_TOKENS = 2.0
_ROUNDS = 15


@dataclass(frozen=True, kw_only=True)
class TokenHomes:
    """share: float64 [N + 1, R], of each row of `TokenRows`; expected: its cost in copies, over all tokens, as a table
    made from the other folds would give.
    """

    share: NDArray[np.float64]
    expected: float


@dataclass(frozen=True, kw_only=True)
class TokenTable:
    """rank: int16 [V], where each token id should start, -1 where unseen; confidence: float16 [V], 0 to 1."""

    rank: NDArray[np.int16]
    confidence: NDArray[np.float16]


def held_out_homes(
    rows: TokenRows, total_of_pair: NDArray[np.float64], price: NDArray[np.float64], temperature: float
) -> TokenHomes:
    """Seat each row where the other folds say, under `price` [R], which moves so that ranks fill evenly.

    total_of_pair: float64 [N, R], cost by home summed over the tokens of each (fold, id) pair.
    """
    means = rows.held_out_means(total_of_pair, PRIOR_TOKENS)
    ep_size = len(price)
    target = np.full(ep_size, 1.0 / ep_size)
    share = priced_shares(means, rows.tokens_of_row, target, price, temperature, _ROUNDS)
    unseen = total_of_pair[rows.is_unseen].sum(axis=0)
    seen = np.where(rows.is_unseen[:, None], 0.0, total_of_pair)
    expected = float((share[:-1] * seen).sum() + (share[-1] * unseen).sum())
    return TokenHomes(share=share, expected=expected)


def token_table(
    rows: TokenRows, total_of_pair: NDArray[np.float64], price: NDArray[np.float64], scale: float, vocab_size: int
) -> TokenTable:
    """The table for all token ids; scale: the dearest copy, which a confidence of 1 saves."""
    tokens = rows.tokens_of_id()[:, None]
    means = (rows.sum_by_id(total_of_pair) + PRIOR_TOKENS * rows.unseen_mean(total_of_pair)) / (tokens + PRIOR_TOKENS)
    best, confidence = _entries(means + price, scale)
    known = rows.token_ids >= 0
    rank_of_id = np.full(vocab_size, -1, dtype=np.int16)
    confidence_of_id = np.zeros(vocab_size, dtype=np.float16)
    rank_of_id[rows.token_ids[known]] = best[known]
    confidence_of_id[rows.token_ids[known]] = confidence[known]
    if rows.nearest is not None:
        _stand_in(rows, rank_of_id, confidence_of_id)
    return TokenTable(rank=rank_of_id, confidence=confidence_of_id)


def _stand_in(rows: TokenRows, rank: NDArray[np.int16], confidence: NDArray[np.float16]) -> None:
    """Give every id that was hardly seen the entry of its nearest token, in place; rank: int16 [V], confidence: float16
    [V].
    """
    assert rows.nearest is not None
    known = rows.token_ids >= 0
    times_seen = np.zeros(len(rank))
    times_seen[rows.token_ids[known]] = rows.tokens_of_id()[known]
    ids = np.flatnonzero((times_seen < WELL_KNOWN) & (rows.nearest != NO_TOKEN))
    ids = ids[rank[rows.nearest[ids]] >= 0]
    rank[ids], confidence[ids] = rank[rows.nearest[ids]], confidence[rows.nearest[ids]]


def held_out_costs(
    rows: TokenRows,
    cost_of_token: NDArray[np.float32],
    total_of_pair: NDArray[np.float64],
    price: NDArray[np.float64],
    scale: float,
) -> NDArray[np.float32]:
    """float32 [T]: what every token costs when it is seated, by the contract's rule, from the table of the other folds.

    cost_of_token: float32 [T, R], each token's cost by home.
    """
    means = rows.held_out_means(total_of_pair, PRIOR_TOKENS)[:-1]
    best, confidence = _entries(means + price, scale)
    pairs, stand_in = rows.stand_ins()
    best[rows.is_unseen] = -1
    best[pairs], confidence[pairs] = best[stand_in], confidence[stand_in]
    wanted, sure = best[rows.raw_row_of_token], confidence[rows.raw_row_of_token]
    homes = seat_tokens(wanted, sure, len(price))
    seated: NDArray[np.float32] = cost_of_token[np.arange(len(homes)), homes]
    return seated


def _entries(priced: NDArray[np.float64], scale: float) -> tuple[NDArray[np.int16], NDArray[np.float16]]:
    """int16 [N], float16 [N]: the cheapest rank of each row, float64 [N, R], and the confidence in it.

    The confidence is what the rank saves over the mean of the others: tokens are seated by it, so those that lose most
    elsewhere come first.
    """
    cheapest = priced.min(axis=1)
    others = (priced.sum(axis=1) - cheapest) / max(1, priced.shape[1] - 1)
    confidence = np.clip((others - cheapest) / scale, 0.0, 1.0)
    return priced.argmin(axis=1).astype(np.int16), confidence.astype(np.float16)
