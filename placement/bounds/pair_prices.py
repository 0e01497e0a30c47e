"""Prices that take a layer of few experts apart into ranks, from the dual of a linear program.

What tokens at home on h save is a sum over *blocks*, the experts that one other rank serves together: a block B saves
saved(h, B), the tokens of the pairs in it. Under `cover` blocks are the pairs that any rank holds; under `static` each
expert outside S_h is in one block. For any prices per_block(h, B) >= 0 and per_expert(h, e) >= 0, with

    credit(h, S)  >=  saved(h, B) - per_block(h, B) - sum over e in B of per_expert(h, e)    for all B in S,

every block is paid for by the rank that serves it, or by the home that lacks its experts:

    saved on h  <=  sum over q != h of credit(h, S_q)  +  sum over B outside S_h of per_block(h, B)
                                                       +  sum over e outside S_h of per_expert(h, e).

So each rank pays for its own column alone. Under `cover` per_expert is 0 and credit(h, S) a sum over the pairs in S,
under `static` it is the largest of these differences, as a rank serves one block for a home. Last, price(e) >= 0 says
what it is worth that e is held at all. Any prices, rounded to whole numbers, give a bound.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.pair_layer import PairLayer

# Blocks of more experts have no price of their own; what they save is still credited.
_LARGEST_PRICED = 3


class PairPrices(NamedTuple):
    """price: int64 [E]; own: int64 [R, N], what a rank pays for each of its columns as a home, less what it pays to
    others; pair_credit: int64 [R, P] for `cover`; credit: int64 [R, 2 ** E] for `static`, by masks.
    """

    price: NDArray[np.int64]
    own: NDArray[np.int64]
    pair_credit: NDArray[np.int64]
    credit: NDArray[np.int64]


class _Dual(NamedTuple):
    """per_block: int64 [R, B]; per_expert: int64 [R, E]; price: int64 [E]."""

    per_block: NDArray[np.int64]
    per_expert: NDArray[np.int64]
    price: NDArray[np.int64]


def pair_prices(layer: PairLayer) -> PairPrices:
    """The prices that bound best before any column is chosen."""
    E = layer.loads.shape[1]
    largest = 2 if layer.is_cover else min(_LARGEST_PRICED, layer.members.shape[1])
    blocks = np.array(
        [
            sum(1 << e for e in some)
            for size in range(2, largest + 1)
            for some in itertools.combinations(range(E), size)
        ],
        dtype=np.int64,
    )
    dual = _dual(layer, blocks)
    credit = np.zeros_like(layer.together)
    if not layer.is_cover:
        outside = (np.arange(1 << E)[:, None] >> np.arange(E)) & 1
        credit = layer.together - dual.per_expert @ outside.T
        credit[:, blocks] -= dual.per_block
        credit = _largest_inside(np.maximum(credit, 0))
    return PairPrices(
        price=dual.price,
        own=_own(layer, blocks, dual),
        pair_credit=layer.tokens - dual.per_block[:, : len(layer.pair)],
        credit=credit,
    )


def _own(layer: PairLayer, blocks: NDArray[np.int64], dual: _Dual) -> NDArray[np.int64]:
    """int64 [R, N]: loads outside the column, less what the home pays for blocks and experts outside it."""
    R, E = layer.loads.shape
    own = np.zeros((R, int((layer.end - layer.begin).max())), dtype=np.int64)
    outside = 1 - ((layer.columns[:, None] >> np.arange(E)) & 1)
    apart = (layer.columns[:, None] & blocks[None, :]) == 0
    cost = (layer.loads - dual.per_expert) @ outside.T - dual.per_block @ apart.T.astype(np.int64)
    for rank, (begin, end) in enumerate(zip(layer.begin, layer.end, strict=True)):
        own[rank, : end - begin] = cost[rank, begin:end]
    return own


def _largest_inside(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """[R, 2 ** E]: each becomes the largest of all subsets of its mask."""
    largest = values.copy()
    bit = 1
    while bit < values.shape[1]:
        has = (np.arange(values.shape[1]) & bit) > 0
        largest[:, has] = np.maximum(largest[:, has], largest[:, ~has])
        bit *= 2
    return largest


def _dual(layer: PairLayer, blocks: NDArray[np.int64]) -> _Dual:
    """Prices by the linear relaxation: a column per rank, and the share of each home's tokens that a block serves."""
    from scipy.optimize import linprog
    from scipy.sparse import block_diag, bmat, coo_array, csr_array, identity, kron

    R, E = layer.loads.shape
    columns = [layer.columns[begin:end] for begin, end in zip(layer.begin, layer.end, strict=True)]
    of_rank = np.repeat(np.arange(R), [len(own) for own in columns])
    chosen = np.concatenate(columns)
    saved = layer.together[:, blocks]
    served = identity(R * len(blocks), format="csr")
    # A block is served by another rank that holds it, and only where the home holds nothing of it.
    holding = csr_array(((chosen[None, :] & blocks[:, None]) == blocks[:, None]).astype(float))
    elsewhere = csr_array((np.arange(R)[:, None] != of_rank[None, :]).astype(float))
    held = bmat([[holding.multiply(elsewhere[[home]])] for home in range(R)])
    apart = block_diag([((own[None, :] & blocks[:, None]) == 0).astype(float) for own in columns])
    rows = [[-held, served], [-apart, served]]
    if not layer.is_cover:
        member = ((blocks[None, :] >> np.arange(E)[:, None]) & 1).astype(float)
        lacking = block_diag([1.0 - ((own[None, :] >> np.arange(E)[:, None]) & 1) for own in columns])
        rows.append([-lacking, kron(identity(R), member)])
    rows.append([-csr_array(((chosen[None, :] >> np.arange(E)[:, None]) & 1).astype(float)), None])
    one_each = coo_array((np.ones(len(chosen)), (of_rank, np.arange(len(chosen)))), shape=(R, len(chosen)))
    matrix = bmat(rows, format="csr")
    outside = 1 - ((chosen[:, None] >> np.arange(E)) & 1)
    cost = np.concatenate([(layer.loads[of_rank] * outside).sum(axis=1), -saved.ravel()]).astype(float)
    limits = np.zeros(matrix.shape[0])
    limits[-E:] = -1.0
    solved = linprog(
        cost,
        A_ub=matrix,
        b_ub=limits,
        A_eq=bmat([[one_each, csr_array((R, saved.size))]], format="csr"),
        b_eq=np.ones(R),
        method="highs",
    )
    if solved.x is None:
        none = np.zeros_like(saved)
        return _Dual(none, np.zeros((R, E), dtype=np.int64), np.zeros(E, dtype=np.int64))
    price = np.rint(np.maximum(-solved.ineqlin.marginals, 0.0)).astype(np.int64)
    per_block = np.minimum(price[saved.size : 2 * saved.size].reshape(saved.shape), saved)
    per_expert = np.zeros((R, E), dtype=np.int64) if layer.is_cover else price[2 * saved.size : -E].reshape(R, E)
    return _Dual(per_block, per_expert, price[-E:])
