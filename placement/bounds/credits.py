"""What tokens credit ranks for parts of their experts: the duals of a cover, and the price of a cover at them.

A token at home on h uses the experts s and needs a cover of s less S_h by other ranks' columns. It *credits* every
other rank with credit(m) >= 0 for holding the part m of s, the more the larger m. For any columns

    copies  >=  cover(s less S_h) - sum over r != h of credit(S_r and s),
    cover(u) = min over partitions of u into blocks of the sum over blocks of (1 + credit(block)),

because the ranks that serve the token, each a block within its part of s, pay 1 each and get back the blocks' credits
at least. So what ties the ranks together is gone: each pays for its own column. Masks as in `mask_costs.py`.

A rank serves no more pairs than its ceiling, its own tokens' at home among them, and it is enough to pay it the
credits of the blocks that it serves. So with any price x >= 0 for load it earns at most

    x * (ceiling - pairs at home) + sum over others' tokens of max over parts b of S_r and s of (credit(b) - x |b|).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.bit_count import bit_count
from specmoe.compiled import compiled
from specmoe.placement.bounds.layer_case import LayerCase

# A start: an expert is worth this much to a token that has it at home, and between a share of its copy and a whole one
# where it comes with others.
_AT_HOME, _ALONE = 0.4, 0.2
# Rows are written for so many types at a time, which stay in the cache.
_NEIGHBOURS = 64


@dataclass(frozen=True, kw_only=True)
class TokenTypes:
    """Tokens alike in set and home, N kinds in order of their sets. set_of_type, home: int32 [N]; tokens: float64 [N].

    starts: int64 [S + 1], where each set's types begin.
    """

    set_of_type: NDArray[np.int32]
    home: NDArray[np.int32]
    tokens: NDArray[np.float64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, case: LayerCase) -> "TokenTypes":
        rows, homes = np.nonzero(case.homes_of_set)
        return cls(
            set_of_type=rows.astype(np.int32),
            home=homes.astype(np.int32),
            tokens=case.homes_of_set[rows, homes].astype(np.float64),
            starts=np.searchsorted(rows, np.arange(len(case.sets) + 1)).astype(np.int64),
        )


@compiled
def masks_of(sets: NDArray[np.int32], column: NDArray[np.uint8], masks: NDArray[np.uint8]) -> None:
    """Write to masks [S] which experts of each set, int32 [S, K], the column [E] holds."""
    for s in range(len(sets)):
        mask = 0
        for k in range(sets.shape[1]):
            if column[sets[s, k]]:
                mask |= 1 << k
        masks[s] = mask


@compiled
def first_credits(
    set_of_type: NDArray[np.int32], home: NDArray[np.int32], masks: NDArray[np.uint8], top_k: int
) -> NDArray[np.float64]:
    """float64 [2 ** K, N]: credits by which a placement, masks [R, S], looks about as good as it is.

    Every expert has a worth, and a part is credited with what its experts are worth beyond one copy.
    """
    credit = np.zeros((1 << top_k, len(home)))
    worth = np.zeros(top_k)
    for t in range(len(home)):
        worth[:] = _AT_HOME
        left = ((1 << top_k) - 1) & ~np.int64(masks[home[t], set_of_type[t]])
        while left:
            block = left & 0
            for rank in range(len(masks)):
                offered = np.int64(masks[rank, set_of_type[t]]) & left
                if bit_count(offered) > bit_count(block):
                    block = offered
            if block == 0:
                break
            for k in range(top_k):
                if block >> k & 1:
                    worth[k] = _ALONE + (1.0 - _ALONE) / bit_count(block)
            left &= ~block
        for mask in range(1 << top_k):
            total = 0.0
            for k in range(top_k):
                if mask >> k & 1:
                    total += worth[k]
            credit[mask, t] = max(total - 1.0, 0.0)
    return credit


@compiled
def price_covers(credit: NDArray[np.float64], cover: NDArray[np.float64]) -> None:
    """Write cover(u) of every mask u and type, [M, N], by the blocks that can have u's lowest bit."""
    cover[0] = 0.0
    for mask in range(1, len(credit)):
        low = mask & -mask
        rest, least = mask ^ low, cover[mask]
        others = rest
        least[:] = np.inf
        while True:
            block, left = credit[others | low], cover[rest ^ others]
            for t in range(len(least)):
                least[t] = min(least[t], 1.0 + block[t] + left[t])
            if others == 0:
                break
            others = (others - 1) & rest


@compiled
def cost_masks(
    starts: NDArray[np.int64],
    home: NDArray[np.int32],
    tokens: NDArray[np.float64],
    credit: NDArray[np.float64],
    cover: NDArray[np.float64],
    load_price: NDArray[np.float64],
    scratch: NDArray[np.float64],
    cost: NDArray[np.float64],
) -> None:
    """Write to cost [L, R, S, M] what each rank pays for each mask where a pair served costs it load_price [L]: covers
    and pairs of its own tokens, less what it earns by others.

    scratch: [3 * M * N].
    """
    M, N = credit.shape
    earned, earns, lacks = scratch[: M * N], scratch[M * N : 2 * M * N], scratch[2 * M * N :]
    size = np.array([bit_count(np.int64(mask)) for mask in range(M)])
    _write_rows(cover, M - 1, lacks.reshape(N, M))
    for way in range(len(load_price)):
        _earn(credit, load_price[way] * size, earned.reshape(M, N))
        _write_rows(earned.reshape(M, N), 0, earns.reshape(N, M))
        _add_up(
            starts, home, tokens, earns.reshape(N, M), lacks.reshape(N, M), load_price[way] * size, cost[way]
        )  # fmt: skip


@compiled
def _write_rows(values: NDArray[np.float64], flip: int, rows: NDArray[np.float64]) -> None:
    """Write to rows [N, M] the values [M, N] of each mask, or of its complement where `flip` is the full mask."""
    M, N = values.shape
    for start in range(0, N, _NEIGHBOURS):
        for mask in range(M):
            for t in range(start, min(N, start + _NEIGHBOURS)):
                rows[t, mask ^ flip] = values[mask, t]


@compiled
def _earn(credit: NDArray[np.float64], price: NDArray[np.float64], earned: NDArray[np.float64]) -> None:
    """Write what a rank earns at most by what it has of a token, [M, N], when it may serve any part of it at
    price [M].
    """
    for mask in range(len(credit)):
        earned[mask] = credit[mask] - price[mask]
    if price[-1] > 0.0:
        _raise_to_parts(earned)


@compiled
def _raise_to_parts(values: NDArray[np.float64]) -> None:
    """Raise the values of each mask, [M, N], to those of its largest part."""
    for mask in range(1, len(values)):
        value, left = values[mask], mask
        while left:
            low = left & -left
            part = values[mask ^ low]
            for t in range(len(value)):
                value[t] = max(value[t], part[t])
            left ^= low


@compiled
def _add_up(
    starts: NDArray[np.int64],
    home: NDArray[np.int32],
    tokens: NDArray[np.float64],
    earns: NDArray[np.float64],
    lacks: NDArray[np.float64],
    price: NDArray[np.float64],
    cost: NDArray[np.float64],
) -> None:
    """Write cost [R, S, M], from what each type pays a rank for what it has, and at home for what it lacks, [N, M]."""
    (R, _, M), by_all = cost.shape, np.zeros(cost.shape[2])
    for s in range(len(starts) - 1):
        cost[:, s] = 0.0
        by_all[:] = 0.0
        for t in range(starts[s], starts[s + 1]):
            own, earn, lack, weight = cost[home[t], s], earns[t], lacks[t], tokens[t]
            for mask in range(M):
                earned = weight * earn[mask]
                by_all[mask] += earned
                own[mask] += earned + weight * (lack[mask] + price[mask])
        for rank in range(R):
            for mask in range(M):
                cost[rank, s, mask] -= by_all[mask]


@compiled
def move_credits(
    set_of_type: NDArray[np.int32],
    home: NDArray[np.int32],
    masks: NDArray[np.uint8],
    load_price: NDArray[np.float64],
    cover: NDArray[np.float64],
    direction: NDArray[np.float64],
    credit: NDArray[np.float64],
    step: float,
    memory: float,
) -> None:
    """One step up: credits rise for blocks that tokens would use, and fall for those that columns, masks [R, S], serve
    where a pair costs rank r load_price[r].

    direction [M, N]: the mean of the steps so far, of which `memory` is kept.
    """
    full, N = len(credit) - 1, len(home)
    for mask in range(full + 1):
        for t in range(N):
            direction[mask, t] *= memory
    for t in range(N):
        s = set_of_type[t]
        left = np.int64(full) & ~np.int64(masks[home[t], s])
        while left:
            block = _used(credit[:, t], cover[:, t], left)
            direction[block, t] += 1.0 - memory
            left &= ~block
        for rank in range(len(masks)):
            if rank != home[t]:
                direction[_served(credit[:, t], masks[rank, s], load_price[rank]), t] -= 1.0 - memory
    for mask in range(1, full + 1):
        for t in range(N):
            credit[mask, t] = max(credit[mask, t] + step * direction[mask, t], 0.0)
    # A larger part is worth no less.
    _raise_to_parts(credit)


@compiled
def _used(credit: NDArray[np.float64], cover: NDArray[np.float64], mask: np.int64) -> np.int64:
    """The block with the lowest bit of `mask` in its cheapest partition."""
    low = mask & -mask
    rest, least, best = mask ^ low, np.inf, mask
    others = rest
    while True:
        cost = 1.0 + credit[others | low] + cover[rest ^ others]
        if cost < least:
            least, best = cost, others | low
        if others == 0:
            return best
        others = (others - 1) & rest


@compiled
def _served(credit: NDArray[np.float64], held: int, load_price: float) -> np.int64:
    """The part of `held` that a rank earns most by, none that is larger than another that earns as much."""
    best, most, part = np.int64(held), -np.inf, np.int64(held)
    while True:
        earned = credit[part] - load_price * bit_count(part)
        # A part comes after all that it is a part of.
        if earned >= most:
            best, most = part, earned
        if part == 0:
            return best
        part = (part - 1) & held
