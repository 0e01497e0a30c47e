"""Random layers small enough to try every placement, and what the best of them costs."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.bounds.layer_case import LayerCase
from specmoe.placement.plan import ReplicaChoice
from specmoe.placement.serving import serve


def random_case(
    rng: np.random.Generator,
    *,
    experts: int,
    top_k: int,
    slots: tuple[int, ...],
    nodes: tuple[int, ...] | None = None,
    surcharge: float = 0.0,
    slack: float | None = None,
    speeds: tuple[float, ...] | None = None,
    tokens: int = 60,
) -> LayerCase:
    """Tokens with skewed experts and homes; slack: how far the ceiling lies above the mean, None for no ceiling."""
    ranks = len(slots)
    popular = rng.random((4, experts)) ** 3
    noise = rng.random((tokens, experts)) * popular[rng.integers(4, size=tokens)]
    ids = np.sort(np.argsort(-noise, axis=1)[:, :top_k], axis=1)
    sets, which = np.unique(ids, axis=0, return_inverse=True)
    homes = rng.integers(ranks, size=tokens)
    homes_of_set = np.zeros((len(sets), ranks), dtype=np.int64)
    np.add.at(homes_of_set, (which.ravel(), homes), 1)
    load = np.bincount(ids.ravel(), minlength=experts).astype(np.float64)
    speed = np.array(speeds or np.ones(ranks))
    ceiling = np.full(ranks, load.sum()) if slack is None else (1 + slack) * load.sum() / speed.sum() * speed
    holds = np.zeros((ranks, experts), dtype=np.bool_)
    holds[np.repeat(np.arange(ranks), slots)[:experts], rng.permutation(experts)] = True
    node = np.zeros(ranks, dtype=np.int32) if nodes is None else np.array(nodes, dtype=np.int32)
    return LayerCase(
        sets=sets.astype(np.int32),
        homes_of_set=homes_of_set,
        load=load,
        slots=np.array(slots, dtype=np.int32),
        ceiling=ceiling,
        node=node,
        surcharge=surcharge,
        holds=holds,
        cost=float(tokens * top_k * (1 + surcharge)),
        is_legal=False,
    )


@functools.cache
def placements(slots: tuple[int, ...]) -> NDArray[np.int32]:
    """int32 [M, E]: every way to give each rank exactly its number of experts, one copy of each."""
    found = [np.full(sum(slots), -1, dtype=np.int32)]
    for rank, count in enumerate(slots):
        grown = []
        for ranks in found:
            for chosen in itertools.combinations(np.flatnonzero(ranks < 0), count):
                grown.append(ranks.copy())
                grown[-1][list(chosen)] = rank
        found = grown
    return np.array(found)


def costs(case: LayerCase, ranks: NDArray[np.int32]) -> NDArray[np.float64]:
    """float64 [M]: what placements [M, E] cost over all tokens; infinite above the ceiling."""
    total = _costs_on(ranks[:, case.sets], np.arange(case.ep_size), case.homes_of_set)
    nodes = case.node[ranks]
    total = total + case.surcharge * _costs_on(nodes[:, case.sets], case.node, case.homes_of_set)
    filled = np.stack([(ranks == rank) @ case.load for rank in range(case.ep_size)], axis=1)
    return np.where((filled <= case.ceiling + 1e-9).all(axis=1), total, np.inf)


def _costs_on(
    places: NDArray[np.int32], place_of_home: NDArray[np.integer], homes_of_set: NDArray[np.int64]
) -> NDArray[np.float64]:
    """float64 [M]: distinct places [M, S, K] away from each token's own, over all tokens."""
    total = np.zeros(len(places))
    for place in range(int(place_of_home.max()) + 1):
        away = homes_of_set[:, place_of_home != place].sum(axis=1)
        total += (places == place).any(axis=2) @ away
    return total


def best_cost(case: LayerCase) -> float:
    """The least cost of any placement of single copies for the case's homes; infinite where none is legal."""
    return float(costs(case, placements(tuple(case.slots.tolist()))).min())


def best_cost_with_any_homes(case: LayerCase) -> float:
    """The least cost when every token may start on the best rank for it, links alike."""
    ranks = placements(tuple(case.slots.tolist()))
    touched = sum((ranks[:, case.sets] == rank).any(axis=2).astype(int) for rank in range(case.ep_size))
    legal = np.isfinite(costs(case, ranks))
    return float(np.where(legal, (touched - 1) @ case.tokens_of_set, np.inf).min())


def replica_placements(slots: tuple[int, ...], experts: int) -> Iterator[NDArray[np.bool_]]:
    """Every way to fill the slots such that each expert is somewhere and nowhere twice: bool [R, E]."""
    columns = [list(itertools.combinations(range(experts), count)) for count in slots]
    for chosen in itertools.product(*columns):
        holds = np.zeros((len(slots), experts), dtype=np.bool_)
        for rank, column in enumerate(chosen):
            holds[rank, list(column)] = True
        if holds.any(axis=0).all():
            yield holds


def least_copies(holds: NDArray[np.bool_], sets: NDArray[np.int32]) -> NDArray[np.int64]:
    """int64 [S, R]: the fewest remote ranks that hold, with the home, all experts of each set."""
    ranks = len(holds)
    least = np.full((len(sets), ranks), ranks)
    for count in range(ranks, -1, -1):
        for others in itertools.combinations(range(ranks), count):
            for home in set(range(ranks)) - set(others):
                served = holds[[home, *others]].any(axis=0)[sets].all(axis=1)
                least[served, home] = count
    return least


def best_cost_with_replicas(case: LayerCase) -> float:
    """The least cost of any placement that fills the slots, whatever the load, if every token found its best cover."""
    return min(
        float((least_copies(holds, case.sets) * case.homes_of_set).sum())
        for holds in replica_placements(tuple(case.slots.tolist()), case.num_experts)
    )


def least_cost_under_the_cap(case: LayerCase, choice: ReplicaChoice) -> float:
    """The least that any placement costs with any dispatch by the replica choice, where loads keep the ceiling."""
    return min(
        cost_of_dispatch(case, holds, dispatch, choice)
        for holds, dispatch in dispatches(tuple(case.slots.tolist()), case.num_experts)
    )


def dispatches(slots: tuple[int, ...], experts: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int32]]]:
    """Every way to fill the slots, as `replica_placements`, with every table of which copy a home rank uses."""
    for holds in replica_placements(slots, experts):
        for dispatch in _dispatches(holds):
            yield holds, dispatch


def cost_of_dispatch(
    case: LayerCase, holds: NDArray[np.bool_], dispatch: NDArray[np.int32], choice: ReplicaChoice
) -> float:
    """Copies over all tokens; infinite above the ceiling."""
    cost, loads = traffic_of_dispatch(case, holds, dispatch, choice)
    return np.inf if (loads > case.ceiling + 1e-9).any() else cost


def traffic_of_dispatch(
    case: LayerCase, holds: NDArray[np.bool_], dispatch: NDArray[np.int32], choice: ReplicaChoice
) -> tuple[float, NDArray[np.float64]]:
    """By the rules themselves: copies over all tokens, and the pairs of each rank, float64 [R]."""
    rows, homes = np.nonzero(case.homes_of_set)
    tokens, experts = case.homes_of_set[rows, homes], case.sets[rows]
    served = serve(experts.astype(np.uint8), homes.astype(np.int32), dispatch, holds, case.node, choice)
    loads = np.bincount(served.ravel(), weights=np.repeat(tokens, experts.shape[1]), minlength=case.ep_size)
    away = [len(set(ranks) - {home}) for ranks, home in zip(served.tolist(), homes.tolist(), strict=True)]
    return float(np.dot(away, tokens)), loads


def _dispatches(holds: NDArray[np.bool_]) -> Iterator[NDArray[np.int32]]:
    """Every table, int32 [R, E], of which copy a home rank uses: its own where it has one."""
    cells = [
        [home] if holds[home, expert] else np.flatnonzero(holds[:, expert]).tolist()
        for home in range(len(holds))
        for expert in range(holds.shape[1])
    ]
    for chosen in itertools.product(*cells):
        yield np.array(chosen, dtype=np.int32).reshape(holds.shape)
