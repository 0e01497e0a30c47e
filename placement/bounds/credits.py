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
    """float64 [N, 2 ** K]: credits by which a placement, masks [R, S], looks about as good as it is.

    Every expert has a worth, and a part is credited with what its experts are worth beyond one copy.
    """
    credit = np.zeros((len(home), 1 << top_k))
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
            credit[t, mask] = max(total - 1.0, 0.0)
    return credit


@compiled
def price_covers(credit: NDArray[np.float64], cover: NDArray[np.float64], block_of: NDArray[np.uint8]) -> None:
    """Write cover(u) of every type and mask u, [N, M], and the block with u's lowest bit of its cheapest partition."""
    for t in range(len(credit)):
        cover[t, 0] = 0.0
        for mask in range(1, credit.shape[1]):
            low = mask & -mask
            rest = mask ^ low
            others, least = rest, np.inf
            while True:
                cost = 1.0 + credit[t, others | low] + cover[t, rest ^ others]
                if cost < least:
                    least = cost
                    block_of[t, mask] = others | low
                if others == 0:
                    break
                others = (others - 1) & rest
            cover[t, mask] = least


@compiled
def cost_masks(
    starts: NDArray[np.int64],
    home: NDArray[np.int32],
    tokens: NDArray[np.float64],
    credit: NDArray[np.float64],
    cover: NDArray[np.float64],
    load_price: NDArray[np.float64],
    cost: NDArray[np.float64],
) -> None:
    """Write to cost [L, R, S, M] what each rank pays for each mask where a pair served costs it load_price [L]: covers
    and pairs of its own tokens, less what it earns by others.
    """
    (L, R, _, M), full = cost.shape, credit.shape[1] - 1
    size = np.array([bit_count(np.int64(mask)) for mask in range(M)])
    earns, all_earn = np.zeros(M), np.zeros((L, M))
    for s in range(len(starts) - 1):
        cost[:, :, s] = 0.0
        all_earn[:] = 0.0
        for t in range(starts[s], starts[s + 1]):
            for way in range(L):
                _earn(credit[t], load_price[way], size, earns)
                own = cost[way, home[t], s]
                for mask in range(M):
                    earned = tokens[t] * earns[mask]
                    all_earn[way, mask] += earned
                    own[mask] += earned + tokens[t] * (cover[t, full ^ mask] + load_price[way] * size[mask])
        for way in range(L):
            for rank in range(R):
                for mask in range(M):
                    cost[way, rank, s, mask] -= all_earn[way, mask]


@compiled
def _earn(credit: NDArray[np.float64], load_price: float, size: NDArray[np.int64], earns: NDArray[np.float64]) -> None:
    """Write what a rank earns by each mask at most, when it may serve any part of it: [M]."""
    for mask in range(len(earns)):
        most = credit[mask] - load_price * size[mask]
        earns[mask] = most if load_price == 0.0 else max(most, _largest_below(earns, mask))


@compiled
def _largest_below(values: NDArray[np.float64], mask: int) -> float:
    """The largest value, [M], of a part that lacks one expert of `mask`; 0 where there is none."""
    most, left = 0.0, mask
    while left:
        low = left & -left
        most = max(most, values[mask ^ low])
        left ^= low
    return most


@compiled
def move_credits(
    set_of_type: NDArray[np.int32],
    home: NDArray[np.int32],
    masks: NDArray[np.uint8],
    load_price: NDArray[np.float64],
    block_of: NDArray[np.uint8],
    direction: NDArray[np.float64],
    credit: NDArray[np.float64],
    step: float,
    memory: float,
) -> None:
    """One step up: credits rise for blocks that tokens would use, and fall for those that columns, masks [R, S], serve
    where a pair costs rank r load_price[r].

    direction [N, M]: the mean of the steps so far, of which `memory` is kept.
    """
    full = credit.shape[1] - 1
    for t in range(len(credit)):
        s = set_of_type[t]
        direction[t] *= memory
        left = full & ~np.int64(masks[home[t], s])
        while left:
            block = block_of[t, left]
            direction[t, block] += 1.0 - memory
            left &= ~np.int64(block)
        for rank in range(len(masks)):
            if rank != home[t]:
                direction[t, _served(credit[t], masks[rank, s], load_price[rank])] -= 1.0 - memory
        credit[t, 0] = 0.0
        for mask in range(1, full + 1):
            # A larger part is worth no less.
            credit[t, mask] = max(credit[t, mask] + step * direction[t, mask], _largest_below(credit[t], mask))


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
