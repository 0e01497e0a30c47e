"""What tokens credit ranks for parts of their experts: the duals of a cover, and the price of a cover at them.

A token at home on h uses the experts s and needs a cover of s less S_h by other ranks' columns. It *credits* every
other rank with credit(m) >= 0 for holding the part m of s, the more the larger m. For any columns

    copies  >=  cover(s less S_h) - sum over r != h of credit(S_r and s),
    cover(u) = min over partitions of u into blocks of the sum over blocks of (1 + credit(block)),

because the ranks that serve the token, each a block within its part of s, pay 1 each and get back the blocks' credits
at least. So what ties the ranks together is gone: each pays for its own column. Masks as in `mask_costs.py`.
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
    cost: NDArray[np.float64],
) -> None:
    """Write to cost [R, S, M] what each rank pays for each mask: covers of its own tokens less others' credits."""
    full = credit.shape[1] - 1
    for s in range(len(starts) - 1):
        cost[:, s] = 0.0
        for t in range(starts[s], starts[s + 1]):
            for mask in range(full + 1):
                earned = tokens[t] * credit[t, mask]
                for rank in range(len(cost)):
                    cost[rank, s, mask] -= earned
                cost[home[t], s, mask] += earned + tokens[t] * cover[t, full ^ mask]


@compiled
def move_credits(
    set_of_type: NDArray[np.int32],
    home: NDArray[np.int32],
    masks: NDArray[np.uint8],
    block_of: NDArray[np.uint8],
    direction: NDArray[np.float64],
    credit: NDArray[np.float64],
    step: float,
    memory: float,
) -> None:
    """One step up: credits rise for blocks that tokens would use, and fall for parts that columns hold, masks [R, S].

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
                direction[t, masks[rank, s]] -= 1.0 - memory
        credit[t, 0] = 0.0
        for mask in range(1, full + 1):
            value = max(credit[t, mask] + step * direction[t, mask], 0.0)
            # A larger part is worth no less.
            part = mask
            while part:
                low = part & -part
                value = max(value, credit[t, mask ^ low])
                part ^= low
            credit[t, mask] = value
