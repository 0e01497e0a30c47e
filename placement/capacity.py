"""What a capacity bound would cost: the pairs that overflow, and their gate mass, on one layer of a trace.

Every source rank bounds its own tokens of a batch, before anything is sent. With n of the batch's tokens at home on
it, a rank may send each expert (level "expert"), or all experts on a rank together (level "device"), under the
division "even", at most

    ceil(factor * n * K * s / P)        pairs, with s of the P slots the expert's, or the rank's;

`placement/capacity_quotas.py` has the division "plan", for plans that say what traffic they expect. The rank keeps the
pairs of the highest gate weight; among equals the earlier token, then the earlier of its experts. Under "drop" the
others are lost. Under "reroute" they are offered, by falling gate weight, to experts on the token's own rank that still
have room and that the token does not use: the one with most room, then the lowest number. A trace does not tell a
token's gate weight for experts outside its top k; a model would choose among them by it.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from specmoe.compiled import compiled
from specmoe.errors import ArtifactError
from specmoe.placement.capacity_quotas import Division, Level, running_shares, slot_counts
from specmoe.placement.homes import TP_BATCH_TOKENS
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingSample

Overflow = Literal["drop", "reroute"]

BATCH_TOKENS = TP_BATCH_TOKENS
_KEPT, _OVERFLOWS, _REROUTED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class CapacityLoss:
    """What one bound does to one layer, or the means over layers.

    lost_pair_rate, rerouted_pair_rate: shares of the (token, expert) pairs. lost_gate_share, rerouted_gate_share: the
    same by gate weight. heaviest_load: the heaviest rank's remaining pairs over the mean rank's without a bound.
    """

    lost_pair_rate: float
    rerouted_pair_rate: float
    lost_gate_share: float
    rerouted_gate_share: float
    heaviest_load: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mean_loss(losses: list[CapacityLoss]) -> CapacityLoss:
    """The mean over layers of every figure."""
    names = [field.name for field in fields(CapacityLoss)]
    return CapacityLoss(**{name: float(np.mean([getattr(loss, name) for loss in losses])) for name in names})


@dataclass(frozen=True, kw_only=True)
class LayerPairs:
    """One layer's (token, expert) pairs, N = T * K, grouped by (batch, home rank), by falling gate weight in a group.

    token: int64 [N]; expert, home, rank: int32 [N], rank serves the pair; gate: float64 [N]. starts: int64 [G + 1],
    the groups' bounds; tokens: int64 [G], tokens of each group; source: int32 [G], its home rank. expert_of_pair:
    int32 [T, K], in trace order.
    """

    token: NDArray[np.int64]
    expert: NDArray[np.int32]
    home: NDArray[np.int32]
    rank: NDArray[np.int32]
    gate: NDArray[np.float64]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    source: NDArray[np.int32]
    expert_of_pair: NDArray[np.int32]


def layer_pairs(plan: PlacementPlan, sample: RoutingSample, layer: int, homes: NDArray[np.int32]) -> LayerPairs:
    """The pairs of row `layer`; homes: int32 [T]. Raises `ArtifactError` for a trace without gate weights."""
    if sample.gate_weights is None:
        raise ArtifactError("a capacity outlook needs gate weights, and this trace has none; profile the model again")
    (T, K), expert_ids = (sample.num_tokens, plan.top_k), sample.expert_ids[:, layer].astype(np.int32)
    served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes)
    gate = sample.gate_weights[:, layer].astype(np.float64).ravel()
    group = np.repeat(np.arange(T) // BATCH_TOKENS * plan.ep_size + homes, K)
    order = np.lexsort((-gate, group))
    sizes = np.unique(group[order], return_counts=True)[1]
    token = order // K
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    home = homes[token].astype(np.int32)
    return LayerPairs(
        token=token,
        expert=expert_ids.ravel()[order],
        home=home,
        rank=served_by.ravel()[order].astype(np.int32),
        gate=gate[order],
        starts=starts,
        tokens=(sizes // K).astype(np.int64),
        source=home[starts[:-1]],
        expert_of_pair=np.ascontiguousarray(expert_ids),
    )


def capacity_loss(
    plan: PlacementPlan,
    layer: int,
    pairs: LayerPairs,
    factor: float,
    level: Level,
    overflow: Overflow,
    division: Division = "even",
) -> CapacityLoss:
    """What the bound does to the pairs of row `layer`; factor is positive."""
    room = bin_room(plan, layer, pairs, factor, level, division)
    fate = np.full(len(pairs.gate), _KEPT, dtype=np.int8)
    _bound(pairs.expert if level == "expert" else pairs.rank, pairs.starts, room, fate)
    if overflow == "reroute":
        local = plan.slot_offsets, plan.physical_to_logical[layer]
        _reroute(pairs.starts, pairs.token, pairs.home, pairs.expert_of_pair, *local, room, fate, level == "expert")
    rank = np.where(fate == _REROUTED, pairs.home, pairs.rank)
    load = np.bincount(rank[fate != _OVERFLOWS], minlength=plan.ep_size)
    gate_total = max(pairs.gate.sum(), np.finfo(np.float64).tiny)
    return CapacityLoss(
        lost_pair_rate=float(np.mean(fate == _OVERFLOWS)),
        rerouted_pair_rate=float(np.mean(fate == _REROUTED)),
        lost_gate_share=float(pairs.gate[fate == _OVERFLOWS].sum() / gate_total),
        rerouted_gate_share=float(pairs.gate[fate == _REROUTED].sum() / gate_total),
        heaviest_load=float(load.max() * plan.ep_size / len(fate)),
    )


def bin_room(
    plan: PlacementPlan, layer: int, pairs: LayerPairs, factor: float, level: Level, division: Division
) -> NDArray[np.int64]:
    """int64 [G, E] (level expert) or [G, R] (level device): the pairs that each group may send to each bin."""
    K = plan.top_k
    share = slot_counts(plan, layer, level) / plan.num_physical_experts
    if division == "even":
        return _rounded_up(factor * pairs.tokens[:, None] * K * share[None, :])
    whole = _rounded_up(factor * plan.ep_size * pairs.tokens[:, None] * K * share[None, :])
    running = running_shares(plan, layer, level)
    # The same hair for both ends: the steps still add up to the whole.
    upto, before = (np.floor(whole * part[pairs.source] + 1e-9) for part in (running.after, running.before))
    room: NDArray[np.int64] = (upto - before).astype(np.int64)
    return room


def _rounded_up(exact: NDArray[np.float64]) -> NDArray[np.int64]:
    # Without the small step down, 1.1 * 200 / 4 (55.00000000000001) would round up to 56.
    whole: NDArray[np.int64] = np.ceil(exact * (1 - 4 * np.finfo(np.float64).eps)).astype(np.int64)
    return whole


@compiled
def _bound(
    bin_of_pair: NDArray[np.int32], starts: NDArray[np.int64], room: NDArray[np.int64], fate: NDArray[np.int8]
) -> None:
    """Mark the pairs that overflow in `fate` [N], and leave in `room` [G, bins] what is left."""
    for group in range(len(starts) - 1):
        for pair in range(starts[group], starts[group + 1]):
            if room[group, bin_of_pair[pair]] > 0:
                room[group, bin_of_pair[pair]] -= 1
            else:
                fate[pair] = _OVERFLOWS


@compiled
def _reroute(
    starts: NDArray[np.int64],
    token: NDArray[np.int64],
    home: NDArray[np.int32],
    expert_of_pair: NDArray[np.int32],
    slot_offsets: NDArray[np.int64],
    expert_of_slot: NDArray[np.int32],
    room: NDArray[np.int64],
    fate: NDArray[np.int8],
    by_expert: bool,
) -> None:
    """Offer the overflowing pairs to unused experts on their token's own rank; marks them in `fate`, takes `room`."""
    num_tokens, top_k = expert_of_pair.shape
    new_experts = np.empty((num_tokens, top_k), dtype=np.int32)
    num_new = np.zeros(num_tokens, dtype=np.int32)
    for group in range(len(starts) - 1):
        for pair in range(starts[group], starts[group + 1]):
            if fate[pair] != _OVERFLOWS:
                continue
            own, row = home[pair], token[pair]
            best, best_room = -1, 0
            for slot in range(slot_offsets[own], slot_offsets[own + 1]):
                expert = expert_of_slot[slot]
                free = room[group, expert] if by_expert else room[group, own]
                if free < best_room or free == 0 or (free == best_room and expert > best):
                    continue
                is_used = np.any(expert_of_pair[row] == expert) or np.any(new_experts[row, : num_new[row]] == expert)
                if not is_used:
                    best, best_room = expert, free
            if best >= 0:
                fate[pair] = _REROUTED
                new_experts[row, num_new[row]] = best
                num_new[row] += 1
                room[group, best if by_expert else own] -= 1
