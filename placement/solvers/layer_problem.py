"""One layer's placement problem, apart from where its tokens start."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.objective import internode_surcharge
from specmoe.placement.options import SolveOptions
from specmoe.placement.solvers.expert_groups import random_by_groups, swap_groups
from specmoe.placement.solvers.expert_sets import ExpertSets, expert_sets
from specmoe.placement.solvers.plain_costs import plain_costs
from specmoe.placement.solvers.swap_anneal import swap_anneal
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES, LoadCap, swap_search
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

# A pair above the cap may save thousands of copies, and a ceiling is seldom a whole number of pairs: where the dearest
# price left a part of a pair above it, this one tells whether the cap can be kept.
_PRICE_OF_A_BREACH = 1e9


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What all layers share. slots: int32 [R]; speed: float64 [R]; node: int32 [R]; link: float64 [R, R], what a copy
    from a home rank (row) to a rank (column) costs, 0 on the diagonal; surcharge: what another node costs beyond that
    of a rank; max_imbalance: the cap that the search keeps, allowed_imbalance: the one that the plan must keep;
    expert_groups: how many groups of experts must be kept whole, 1 for none; expert_loads: float64 [L, E], the pairs
    that the caps are on where they are not the sample's own.
    """

    slots: NDArray[np.int32]
    speed: NDArray[np.float64]
    node: NDArray[np.int32]
    link: NDArray[np.float64]
    surcharge: float
    max_imbalance: float
    allowed_imbalance: float
    expert_groups: int = 1
    expert_loads: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, topology: Topology, options: SolveOptions, num_logical_experts: int, max_imbalance: float) -> "Machine":
        """The machine of `topology`, with `options.extra_slots` more slots on every rank."""
        node = topology.node_of_rank
        surcharge = internode_surcharge(topology)
        link = 1.0 + surcharge * (node[:, None] != node[None, :])
        np.fill_diagonal(link, 0.0)
        return cls(
            slots=topology.slots_of_rank(num_logical_experts, options.extra_slots),
            speed=topology.speed_of_rank,
            node=node,
            link=link,
            surcharge=surcharge,
            max_imbalance=max_imbalance,
            allowed_imbalance=options.max_imbalance,
            expert_groups=(options.expert_groups or 1) if options.group_limited else 1,
            expert_loads=options.expert_loads,
        )

    @property
    def ep_size(self) -> int:
        return len(self.slots)

    @property
    def dearest_copy(self) -> float:
        """What a copy over the slowest link costs; temperatures go with it."""
        return 1.0 + self.surcharge


@dataclass(frozen=True, kw_only=True)
class LayerProblem:
    """One layer. load: float64 [P], pairs per expert, then zeros for the slots beyond the experts."""

    sets: ExpertSets
    load: NDArray[np.float64]
    num_logical_experts: int
    machine: Machine

    @classmethod
    def of(
        cls, profile: RoutingProfile, layer: int, machine: Machine, tokens: NDArray[np.int64] | None = None
    ) -> "LayerProblem":
        """Row `layer` of a profile that has a sample; tokens: the sample's rows that count, all if None.

        Loads are those of all rows, scaled to as many as count: a draw of them would be less exact.
        """
        expert_ids = profile.require_sample("a placement by co-activation").expert_ids[:, layer]
        E = profile.num_logical_experts
        load = np.zeros(int(machine.slots.sum()))
        load[:E] = np.bincount(expert_ids.ravel(), minlength=E)
        if machine.expert_loads is not None:
            load[:E] = machine.expert_loads[layer] * (load.sum() / machine.expert_loads[layer].sum())
        if tokens is not None:
            load *= len(tokens) / len(expert_ids)
            expert_ids = expert_ids[tokens]
        sets = expert_sets(expert_ids, E)
        return cls(sets=sets, load=load, num_logical_experts=E, machine=machine)

    @property
    def cap(self) -> LoadCap:
        speed = self.machine.speed
        ceiling = self.machine.max_imbalance * self.load.sum() / speed.sum()
        return LoadCap(load=self.load, speed=speed, ceiling=float(ceiling))

    @property
    def allowed_ceiling(self) -> float:
        """Pairs per unit of speed that the plan may put on a rank."""
        return self.cap.ceiling * self.machine.allowed_imbalance / self.machine.max_imbalance

    def random_placement(self, rng: np.random.Generator) -> NDArray[np.int32]:
        """int32 [P]: the rank of every place, each rank as often as it has slots."""
        groups = self.machine.expert_groups
        if groups > 1:
            return random_by_groups(self.num_logical_experts, self.machine.slots, groups, rng)
        ranks = np.repeat(np.arange(self.machine.ep_size, dtype=np.int32), self.machine.slots)
        return rng.permutation(ranks)

    def search(
        self,
        homes_of_set: NDArray[np.float64],
        start: NDArray[np.int32],
        *,
        steps: int = 400,
        patience: int = 50,
        kicks: int = 0,
        annealed: int = 0,
        seed: int = 0,
    ) -> NDArray[np.int32]:
        """int32 [P]: a placement improved by `swap_search`; homes_of_set: float64 [S, R], how many tokens of each set
        start on each rank; annealed: how many proposals of `swap_anneal` come before it.
        """
        groups = self.machine.expert_groups
        kind = (np.arange(len(start)) * groups // len(start)).astype(np.int32)
        if groups >= self.machine.ep_size > 1:
            start = swap_groups(start, groups, lambda place: self.priced_cost(place, homes_of_set))
        price, placed = homes_of_set @ self.machine.link, start
        if annealed:
            placed = swap_anneal(self.sets.sets, price, self.cap, start, kind=kind, proposals=annealed, seed=seed)

        def searched(place: NDArray[np.int32], overload_price: float) -> NDArray[np.int32]:
            found, _ = swap_search(
                self.sets.sets,
                price,
                self.cap,
                place,
                kind=kind,
                overload_price=overload_price,
                steps=steps,
                patience=patience,
                kicks=kicks,
                seed=seed,
            )
            return found

        for overload_price in OVERLOAD_PRICES:
            placed = searched(placed, overload_price)
            if self.cap.is_kept(placed):
                return placed
        within = searched(placed, _PRICE_OF_A_BREACH)
        return within if self.cap.is_kept(within) else placed

    def priced_cost(self, rank_of_place: NDArray[np.int32], homes_of_set: NDArray[np.float64]) -> float:
        """Copies over all tokens, with the dearest price for what is above the load cap."""
        cap = self.cap
        over = float(np.maximum(cap.filled(rank_of_place) - cap.ceiling, 0.0).sum())
        return float((self.copies_by_home(rank_of_place) * homes_of_set).sum()) + OVERLOAD_PRICES[-1] * over

    def copies_by_home(self, rank_of_place: NDArray[np.int32]) -> NDArray[np.float32]:
        """float32 [S, R]: what a token of each set costs when it starts on each rank, one copy of each expert."""
        return plain_costs(self.sets.sets, rank_of_place, self.machine.link)
