"""The plan that the expected files in these tests were written for."""

import numpy as np
import pytest

from specmoe.placement.plan import PlacementPlan
from specmoe.placement.topology import Topology


@pytest.fixture
def small_plan() -> PlacementPlan:
    """8 experts in 10 slots on 2 ranks; a dense layer, then MoE layers 1 to 3, the second of them unlike the others."""
    ordered = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    swapped = [5, 2, 0, 7, 1, 3, 4, 6, 5, 0]
    rows = np.array([ordered, swapped, ordered], dtype=np.int32)
    return PlacementPlan(
        topology=Topology.single_node(2),
        num_logical_experts=8,
        top_k=2,
        attention="dp",
        replica_choice="static",
        layer_ids=np.array([1, 2, 3], dtype=np.int32),
        physical_to_logical=rows,
        rank_of_physical=np.repeat(np.arange(2, dtype=np.int32), 5),
        # The last slot of each expert is on rank 1 wherever that rank has one, the first on rank 0.
        dispatch_slot=np.stack([[_first(row), _last(row)] for row in rows]).astype(np.int32),
        method="by hand",
    )


def _first(row: np.ndarray) -> list[int]:
    return [int(np.flatnonzero(row == expert)[0]) for expert in range(8)]


def _last(row: np.ndarray) -> list[int]:
    return [int(np.flatnonzero(row == expert)[-1]) for expert in range(8)]
