"""The numbers that the page's script draws, as one JSON object; arrays are base64 of little-endian bytes."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specmoe.artifact import Array
from specmoe.placement.report.findings import Findings, Placement, setting_of
from specmoe.placement.shown_metrics import ShownMetric

# Co-activation is drawn in 16 shades, two to a byte; past this much of it evenly spaced layers stand for all.
MAX_COACTIVATION_BYTES = 1_500_000
TOP_LEVEL = 15
# What is more frequent than all but this share of the pairs has the darkest shade.
BRIGHTEST_SHARE = 0.005


def payload(findings: Findings, metrics: Sequence[ShownMetric]) -> dict[str, Any]:
    """What `page/main.js` reads."""
    settings = list(findings.settings)
    drawn = {index for index, placement in enumerate(findings.placements) if not placement.result.baseline}
    drawn |= {findings.placements[index].before for index in drawn}
    return {
        "layerIds": findings.profile.layer_ids.tolist(),
        "numExperts": findings.profile.num_logical_experts,
        "metrics": [{"heading": metric.heading, "unit": metric.unit, "digits": metric.digits} for metric in metrics],
        "placements": [
            _placement(placement, metrics, in_detail=index in drawn)
            | {"setting": settings.index(setting_of(placement.plan))}
            for index, placement in enumerate(findings.placements)
        ],
        "drift": [round(100 * distance, 3) for moved in findings.drifts[:1] for distance in moved.distance_of_layer],
        "coactivation": _coactivation(findings.profile.coactivation_counts),
    }


def similarity(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [E, E]: how often two experts act on one token, as the cosine c_ij / sqrt(c_ii c_jj); the diagonal is 0.

    counts: int64 [E, E], co-activation of one layer. 1: the two are always used together; 0: never.
    """
    used = np.sqrt(np.maximum(np.diagonal(counts), 1).astype(np.float64))
    cosine: NDArray[np.float64] = counts / used[:, None] / used[None, :]
    np.fill_diagonal(cosine, 0.0)
    return cosine


def _placement(placement: Placement, metrics: Sequence[ShownMetric], *, in_detail: bool) -> dict[str, Any]:
    result = placement.result
    return {
        "label": placement.label,
        "short": placement.short,
        "baseline": result.baseline,
        "before": placement.before,
        "nodeOfRank": placement.plan.topology.node_of_rank.tolist(),
        "metrics": [[round(metric.value(layer), 5) for layer in result.layers] for metric in metrics],
        "load": _base64(placement.detail.load.astype("<f4")),
        "capacity": [
            {
                "factor": bound.factor,
                "level": bound.level,
                "overflow": bound.overflow,
                "lost": round(bound.mean.lost_pair_rate, 6),
            }
            for bound in placement.capacity
        ],
        "detail": _detail(placement) if in_detail else None,
    }


def _detail(placement: Placement) -> dict[str, Any]:
    plan = placement.plan
    return {
        "slots": _base64(plan.physical_to_logical.astype("<u2")),
        "rankOfSlot": plan.rank_of_physical.tolist(),
        "rows": _base64(placement.detail.rows.astype("<f4")),
        "together": None if placement.together is None else np.round(placement.together, 4).tolist(),
    }


def _coactivation(counts: NDArray[np.int64] | None) -> dict[str, Any] | None:
    """The upper triangles of the chosen layers, row by row, in shades of 0 to 15, the first of two in the high bits."""
    if counts is None or counts.shape[1] < 2:
        return None
    num_layers, num_experts = counts.shape[:2]
    triangle = np.triu_indices(num_experts, k=1)
    bytes_per_layer = (len(triangle[0]) + 1) // 2
    num_shown = min(num_layers, max(1, MAX_COACTIVATION_BYTES // bytes_per_layer))
    rows = np.unique(np.linspace(0, num_layers - 1, num_shown).round().astype(int))
    packed, tops = [], []
    for row in rows:
        values = similarity(counts[row])[triangle]
        top = max(float(np.quantile(values, 1 - BRIGHTEST_SHARE)), 1e-9)
        levels = np.minimum(np.round(values * (TOP_LEVEL / top)), TOP_LEVEL).astype(np.uint8)
        packed.append(_two_to_a_byte(levels))
        tops.append(round(top, 5))
    return {"rows": rows.tolist(), "tops": tops, "levels": _base64(np.concatenate(packed))}


def _two_to_a_byte(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    even = np.append(levels, np.uint8(0)) if len(levels) % 2 else levels
    return np.asarray(even[::2] << 4 | even[1::2], dtype=np.uint8)


def _base64(array: Array) -> str:
    return b64encode(np.ascontiguousarray(array).tobytes()).decode()
