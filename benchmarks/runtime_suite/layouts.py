"""The placements that are compared, and the networks on which they are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import specmoe
from specmoe.placement.plan import Attention, PlacementPlan
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

NUM_RANKS = 4
# Links so fast that only computing and latency are left.
FREE_MBIT = 10_000
MBIT_PER_GB = 8_000


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Megabits per second, each way: of every rank's link, and of the link between nodes where there are nodes."""

    rank: float
    node: float | None = None

    @property
    def label(self) -> str:
        if self.rank == FREE_MBIT:
            return "free"
        return f"{self.rank:g}" if self.node is None else f"{self.rank:g}, {self.node:g} between nodes"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """ranks_per_node: what is really there; topology: what topology-aware plans are told of it; speeds: the first is
    free. slowdowns: how many times as long as on the fastest each rank takes for its experts' products."""

    key: str
    title: str
    topology: Topology
    speeds: tuple[Speed, ...]
    slowdowns: tuple[float, ...] = (1.0,) * NUM_RANKS


def scenarios(rank_mbits: tuple[float, ...], fast_mbit: float, node_mbits: tuple[float, ...]) -> list[Scenario]:
    """(a) equal links at `rank_mbits`; (b) two nodes of two, `fast_mbit` to a rank and `node_mbits` between nodes;
    (c) equal links without bounds, two ranks of which are three times as slow and hold fewer experts."""
    slow = min(node_mbits)
    return [
        Scenario(
            key="a",
            title="four ranks, equal links",
            topology=Topology.single_node(NUM_RANKS),
            speeds=(Speed(rank=FREE_MBIT), *(Speed(rank=mbit) for mbit in rank_mbits)),
        ),
        Scenario(
            key="b",
            title="two nodes of two ranks, a slow link between them",
            topology=Topology(
                ranks_per_node=(2, 2),
                intra_node_gb_per_s=fast_mbit / MBIT_PER_GB,
                inter_node_gb_per_s=slow / MBIT_PER_GB,
            ),
            speeds=(
                Speed(rank=FREE_MBIT, node=FREE_MBIT),
                *(Speed(rank=fast_mbit, node=mbit) for mbit in node_mbits),
            ),
        ),
        Scenario(
            key="c",
            title="four ranks, two of them three times as slow and with fewer slots",
            topology=Topology(ranks_per_node=(4,), relative_speed=(3.0, 3.0, 1.0, 1.0), slots=(10, 10, 6, 6)),
            speeds=(Speed(rank=FREE_MBIT),),
            slowdowns=(1.0, 1.0, 3.0, 3.0),
        ),
    ]


class Planner:
    """Plans for one model, each solved once, however many networks it is measured on."""

    def __init__(self, fit: RoutingProfile) -> None:
        self._fit = fit
        self._solved: dict[tuple[Any, ...], PlacementPlan] = {}

    def plans(self, scenario: Scenario, attention: Attention) -> dict[str, PlacementPlan]:
        """By name, linear first; those named so have a quarter more slots."""
        flat, told = Topology.single_node(NUM_RANKS), scenario.topology
        quarter = self._fit.num_logical_experts // NUM_RANKS // 4
        plans = {"linear": self._plan(flat, attention, method="linear")}
        # Balance alone is shown once: under `tp` it moves as much as linear too.
        if attention == "dp":
            plans["eplb"] = self._plan(flat, attention, method="eplb")
        if scenario.key == "b":
            # The same placement, whose rows go by relays and by node: what is gained by knowing the nodes alone.
            plans["linear, told of the nodes"] = self._plan(told, attention, method="linear")
        plans["specmoe"] = self._plan(flat, attention)
        if scenario.key == "c":
            return plans | {"specmoe, told of the ranks": self._plan(told, attention)}
        if scenario.key == "b":
            plans["specmoe, told of the nodes"] = self._plan(told, attention)
        plans["specmoe, 25 % more slots"] = self._plan(flat, attention, extra_slots=quarter)
        if scenario.key == "b":
            plans["specmoe, told of the nodes, 25 % more slots"] = self._plan(told, attention, extra_slots=quarter)
        return plans

    def _plan(self, topology: Topology, attention: Attention, **options: Any) -> PlacementPlan:
        key = (topology, attention, *sorted(options.items()))
        if key not in self._solved:
            solve: Callable[..., PlacementPlan] = specmoe.solve
            # The bound is not shown here, and held-out load is what counts.
            given = {"attention": attention, "best_effort": True, "bound_seconds": 0, **options}
            self._solved[key] = solve(self._fit, topology, **given)
        return self._solved[key]
