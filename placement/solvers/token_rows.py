"""Group a sample's tokens by token id and by fold of requests, to judge a token table on requests it has not seen.

The table that is judged for a token is made without the token's own fold. A token whose id occurs in no other fold is
*unseen*: it counts towards one row for all unseen tokens, because a table can say nothing about it, and the homes that
are left for it are the same for all of them. Where the nearest token of every id is known, the row of that one, as the
same folds know it, stands in for the row of an id that they have hardly seen.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.solvers.nearest_tokens import NO_TOKEN, WELL_KNOWN
from specmoe.placement.solvers.row_sums import sum_over_tokens
from specmoe.profiler.routing_profile import RoutingSample

_FOLDS = 8


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Tokens grouped by (fold, token id).

    raw_row_of_token: int32 [T], its (fold, id) pair; row_of_token: the same, but `num_pairs` where unseen. id_of_pair:
    int64 [N], an index into token_ids: int32 [D], the distinct known ids; fold_of_pair: int64 [N]; pairs are ordered by
    both. tokens_of_pair: float64 [N]. nearest: int32 [V]
    as of `nearest_tokens`, None where the embeddings are not at hand.
    """

    raw_row_of_token: NDArray[np.int32]
    row_of_token: NDArray[np.int32]
    id_of_pair: NDArray[np.int64]
    fold_of_pair: NDArray[np.int64]
    tokens_of_pair: NDArray[np.float64]
    is_unseen: NDArray[np.bool_]
    token_ids: NDArray[np.int32]
    nearest: NDArray[np.int32] | None = None

    @classmethod
    def of(cls, sample: RoutingSample, seed: int, nearest: NDArray[np.int32] | None = None) -> "TokenRows":
        """Group the tokens of a sample that has token ids; an id below 0 is unknown, so unseen."""
        assert sample.token_ids is not None
        fold = _fold_of_token(sample, seed)
        token_ids, id_of_token = np.unique(sample.token_ids, return_inverse=True)
        pairs, row = np.unique(id_of_token * np.int64(_FOLDS) + fold, return_inverse=True)
        tokens = np.bincount(row).astype(np.float64)
        id_of_pair = pairs // _FOLDS
        elsewhere = np.bincount(id_of_pair, weights=tokens)[id_of_pair] - tokens
        is_unseen = (elsewhere == 0) | (token_ids[id_of_pair] < 0)
        return cls(
            raw_row_of_token=row.astype(np.int32),
            row_of_token=np.where(is_unseen[row], len(pairs), row).astype(np.int32),
            id_of_pair=id_of_pair,
            fold_of_pair=pairs % _FOLDS,
            tokens_of_pair=tokens,
            is_unseen=is_unseen,
            token_ids=token_ids.astype(np.int32),
            nearest=nearest,
        )

    @property
    def num_pairs(self) -> int:
        return len(self.id_of_pair)

    @property
    def tokens_of_row(self) -> NDArray[np.float64]:
        """float64 [N + 1]: the tokens of each row, those of unseen ids in the last one."""
        unseen = self.tokens_of_pair[self.is_unseen].sum()
        return np.append(np.where(self.is_unseen, 0.0, self.tokens_of_pair), unseen)

    def tokens_of_id(self) -> NDArray[np.float64]:
        """float64 [D]: how often each token id occurs."""
        total = np.zeros(len(self.token_ids))
        np.add.at(total, self.id_of_pair, self.tokens_of_pair)
        return total

    def sum_by_id(self, total_of_pair: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [D, R]: totals over all folds of each token id; total_of_pair: float64 [N, R]."""
        pair = np.arange(self.num_pairs, dtype=np.int32)
        return sum_over_tokens(pair, self.id_of_pair.astype(np.int32), total_of_pair, len(self.token_ids))

    def unseen_mean(self, total_of_pair: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [R]: the mean cost of an unseen token at each home; over all tokens where none is unseen."""
        chosen = self.is_unseen if self.is_unseen.any() else np.ones_like(self.is_unseen)
        mean: NDArray[np.float64] = total_of_pair[chosen].sum(axis=0) / self.tokens_of_pair[chosen].sum()
        return mean

    def held_out_means(self, total_of_pair: NDArray[np.float64], prior_tokens: float) -> NDArray[np.float64]:
        """float64 [N + 1, R]: each row's mean cost by home as the other folds know it, shrunk to the unseen mean.

        total_of_pair: float64 [N, R], cost by home summed over the tokens of each pair.
        """
        prior = self.unseen_mean(total_of_pair)
        others = self.sum_by_id(total_of_pair)[self.id_of_pair] - total_of_pair
        tokens = self.tokens_of_id()[self.id_of_pair] - self.tokens_of_pair
        means = (others + prior_tokens * prior) / (tokens + prior_tokens)[:, None]
        return np.vstack([means, prior])

    def stand_ins(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """int64 [M], int64 [M]: the pairs whose id the other folds have hardly seen, and the pair that stands in for
        each: of the nearest token in the same fold, so that it says what the same other folds know; of another fold
        where this one does not have it. Those for which none can are left out.
        """
        none = np.zeros(0, dtype=np.int64)
        if self.nearest is None:
            return none, none
        elsewhere = self.tokens_of_id()[self.id_of_pair] - self.tokens_of_pair
        pairs = np.flatnonzero((elsewhere < WELL_KNOWN) & (self.token_ids[self.id_of_pair] >= 0))
        token = self.nearest[self.token_ids[self.id_of_pair[pairs]]]
        wanted = np.searchsorted(self.token_ids, token)
        found = np.minimum(wanted, len(self.token_ids) - 1)
        is_there = (token != NO_TOKEN) & (self.token_ids[found] == token)
        pairs, found = pairs[is_there], found[is_there]
        cells = self.id_of_pair * _FOLDS + self.fold_of_pair
        same_fold = found * _FOLDS + self.fold_of_pair[pairs]
        place = np.minimum(np.searchsorted(cells, same_fold), len(cells) - 1)
        first = np.searchsorted(cells, found * _FOLDS)
        return pairs, np.where(cells[place] == same_fold, place, first)


def _fold_of_token(sample: RoutingSample, seed: int) -> NDArray[np.int64]:
    """int64 [T]: the fold of each token's request, or of the token where requests are unknown."""
    rng = np.random.default_rng(seed)
    if sample.request_ids is None:
        return rng.integers(_FOLDS, size=sample.num_tokens)
    _, request = np.unique(sample.request_ids, return_inverse=True)
    fold: NDArray[np.int64] = (rng.permutation(request.max() + 1) % _FOLDS)[request]
    return fold
