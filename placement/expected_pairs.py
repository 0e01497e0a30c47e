"""What each slot is expected to serve of each home rank's tokens: the plan's own measure of its traffic, in pairs.

    expected_pairs[l, r, p] = (pairs of tokens at home on r that slot p serves + prior) / (tokens at home on r + 1)

The prior is one token more on every rank, which uses the experts as all tokens of the layer do, through
`dispatch_slot`: so no expert that is in use is expected never to be asked by a rank. The sum over p is K.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import homes_of
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.serving import serve_layer
from specmoe.profiler.routing_profile import RoutingSample


def with_expected_pairs(plan: PlacementPlan, sample: RoutingSample) -> PlacementPlan:
    """The plan with its `expected_pairs`, as they are on `sample` (at least one token)."""
    homes = homes_of(plan, sample)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        layers = list(pool.map(lambda layer: _layer_pairs(plan, sample, layer, homes[layer]), range(plan.num_layers)))
    return replace(plan, expected_pairs=np.stack(layers).astype(np.float32))


def _layer_pairs(
    plan: PlacementPlan, sample: RoutingSample, layer: int, homes: NDArray[np.int32]
) -> NDArray[np.float64]:
    """float64 [R, P] of row `layer`; homes: int32 [T]."""
    R, E, P = plan.ep_size, plan.num_logical_experts, plan.num_physical_experts
    expert_ids = sample.expert_ids[:, layer].astype(np.int64)
    served_by = serve_layer(plan, layer, sample.expert_ids[:, layer], homes)
    slot_on_rank = np.zeros((R, E), dtype=np.int64)
    slot_on_rank[plan.rank_of_physical, plan.physical_to_logical[layer]] = np.arange(P)
    cell = homes[:, None].astype(np.int64) * P + slot_on_rank[served_by, expert_ids]
    pairs = np.bincount(cell.ravel(), minlength=R * P).reshape(R, P).astype(np.float64)
    per_token = np.bincount(expert_ids.ravel(), minlength=E) / len(expert_ids)
    pairs[np.arange(R)[:, None], plan.dispatch_slot[layer]] += per_token
    expected: NDArray[np.float64] = pairs / (np.bincount(homes, minlength=R)[:, None] + 1.0)
    return expected
