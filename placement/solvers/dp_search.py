"""A profile's layers under `dp`, and where its requests start: what every search for a plan asks for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.options import SolveOptions
from specmoe.placement.solvers.affinity import Affinity, AffinityModel
from specmoe.placement.solvers.assignment_rule import simulated_shares
from specmoe.placement.solvers.copies import Copies
from specmoe.placement.solvers.cost_spread import cost_spread, redrawn_costs
from specmoe.placement.solvers.effort import affordable_rounds, searched_tokens
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.solvers.load_drift import Redraws, expected_heaviest
from specmoe.placement.solvers.margins import Margins, Trial, best_trial, under_margin
from specmoe.placement.solvers.replicated_layer import copies_by_home
from specmoe.placement.solvers.requests import Requests
from specmoe.placement.solvers.row_sums import sum_over_tokens
from specmoe.profiler.routing_profile import RoutingProfile

Result = TypeVar("Result")
Places = list[NDArray[np.int32]]

_PATIENCE, _KICKED_PATIENCE = 40, 20
# In how many orders requests come while homes and placements alternate, and when the end is judged. A search fits its
# placements to the orders that it sees, by 1 % where links are slow, so it is judged in others.
_ORDERS, _FEWEST_ORDERS, _JUDGED_ORDERS = 24, 6, 48


class DpSearch:
    """The layers of one profile, and where its requests start; works layer by layer in threads."""

    def __init__(self, profile: RoutingProfile, machine: Machine, options: SolveOptions) -> None:
        sample = profile.require_sample("solving for request homes")
        self.profile = profile
        self.options = options
        self.machine = machine
        self.requests = Requests.of(sample)
        self.model = None if self.requests.known_tokens is None else AffinityModel.of(self.requests)
        self.problems = self.each_layer(lambda layer: LayerProblem.of(profile, layer, machine))
        # What searches weigh: the same, or a draw of the tokens where there are very many.
        self.tokens = searched_tokens(sample.num_tokens, profile.top_k, options.seed)
        self.searched = self.problems
        if len(self.tokens) < sample.num_tokens:
            self.searched = self.each_layer(lambda layer: LayerProblem.of(profile, layer, machine, self.tokens))

    def each_layer(self, work: Callable[[int], Result]) -> list[Result]:
        """`work(layer)` for every layer, in order."""
        with ThreadPoolExecutor(self.options.workers) as pool:
            return list(pool.map(work, range(self.profile.num_layers)))

    def homes_of_set(self, layer: int, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [S, R]: how many tokens of each set that is searched start on each rank; share: float64 [Q, R]."""
        sets = self.searched[layer].sets
        return sum_over_tokens(self.requests.request_of_token[self.tokens], sets.set_of_token, share, len(sets.sets))

    def cost_per_token(self, cost_of_set: Callable[[int], NDArray[np.float32]]) -> NDArray[np.float64]:
        """float64 [Q, R]: mean copies per token and layer of each request by home.

        cost_of_set: gives [S, R] of a layer; asked for one after the other, for all layers' are too large.
        """
        total = self.each_layer(
            lambda layer: sum_over_tokens(
                self.problems[layer].sets.set_of_token,
                self.requests.request_of_token,
                cost_of_set(layer),
                self.requests.num_requests,
            )
        )
        mean: NDArray[np.float64] = np.sum(total, axis=0) / (len(total) * self.requests.lengths[:, None])
        return mean

    def kicked(self, share: NDArray[np.float64], places: Places, kicks: int, seed: int) -> Places:
        """Every layer's placement bettered for homes `share` by searches that begin anew near it."""

        def work(layer: int) -> NDArray[np.int32]:
            if self.options.is_over:
                return places[layer]
            homes = self.homes_of_set(layer, share)
            return self.searched[layer].search(
                homes, places[layer], patience=_KICKED_PATIENCE, kicks=kicks, seed=self.options.seed + seed
            )

        return self.each_layer(work)

    def place(
        self, share: NDArray[np.float64], places: Places | None, restarts: int, seed: int, *, annealed: int = 0
    ) -> Places:
        """Every layer's best placement for homes `share`, from `places` on and from `restarts` random ones.

        annealed: proposals by which `places` are annealed too.
        """

        def work(layer: int) -> NDArray[np.int32]:
            problem, homes = self.searched[layer], self.homes_of_set(layer, share)
            rng = np.random.default_rng((self.options.seed, seed, layer))
            starts = [] if places is None else [(places[layer], 0)]
            if annealed:
                starts += [(start, annealed) for start, _ in starts]
            starts += [(problem.random_placement(rng), 0) for _ in range(restarts)]
            found: list[NDArray[np.int32]] = []
            for start, proposals in starts:
                if self.options.is_over and (found or places is not None):
                    found.append(start)
                    break
                found.append(problem.search(homes, start, patience=_PATIENCE, annealed=proposals, seed=seed))
            return min(found, key=lambda place: (not problem.cap.is_kept(place), problem.priced_cost(place, homes)))

        return self.each_layer(work)

    def choose_margins(self, share: NDArray[np.float64], places: Places, margins: Margins) -> Places:
        """Every layer's placement under the margin that suits it, from `places` on; later searches keep to it."""
        if len(margins) == 1:
            return places
        sample = self.profile.require_sample("solving for request homes")
        redraws = Redraws.of(sample, self.options.seed)

        def work(layer: int) -> tuple[float, NDArray[np.int32]]:
            redrawn = redraws.pairs(sample.expert_ids[:, layer], self.profile.num_logical_experts)
            homes = self.homes_of_set(layer, share)
            trials = []
            for margin in margins:
                problem = under_margin(self.searched[layer], margin)
                place = problem.search(homes, places[layer], patience=_PATIENCE, seed=self.options.seed)
                copies = float((problem.copies_by_home(place) * homes).sum())
                heaviest = expected_heaviest(redrawn, place[: problem.num_logical_experts], self.machine.speed)
                trials.append(Trial(found=(margin, place), copies=copies, heaviest=heaviest))
            return best_trial(trials, self.options.max_imbalance).found

        chosen = self.each_layer(work)
        self.problems = [under_margin(one, margin) for one, (margin, _) in zip(self.problems, chosen, strict=True)]
        self.searched = [under_margin(one, margin) for one, (margin, _) in zip(self.searched, chosen, strict=True)]
        return [place for _, place in chosen]

    def served_homes(self, cost: NDArray[np.float64]) -> tuple[NDArray[np.float64], Affinity | None]:
        """float64 [Q, R]: where new requests like these would start, and the affinity that sends them there."""
        orders = max(_FEWEST_ORDERS, affordable_rounds(_ORDERS, int(self.machine.slots.sum())))
        return self._served_homes(cost, orders, self.options.seed)

    def judged_homes(self, cost: NDArray[np.float64]) -> tuple[NDArray[np.float64], Affinity | None]:
        """The same in orders that no search has seen."""
        return self._served_homes(cost, _JUDGED_ORDERS, self.options.seed + 1)

    def _served_homes(
        self, cost: NDArray[np.float64], orders: int, seed: int
    ) -> tuple[NDArray[np.float64], Affinity | None]:
        lengths, ep_size = self.requests.lengths, self.machine.ep_size
        if self.model is None:
            return np.full((len(lengths), ep_size), 1.0 / ep_size), None
        affinity = self.model.fit(cost)
        pull = affinity.held_out_pull * lengths[:, None]
        return simulated_shares(pull, lengths, orders=orders, seed=seed), affinity

    def spread(self, affinity: Affinity | None, cost: NDArray[np.float64]) -> float | None:
        """How far from the expected cost that of other requests may lie, as a part of it."""
        lengths = self.requests.lengths
        if len(lengths) < 2:
            return None
        pull = np.zeros_like(cost) if affinity is None else affinity.held_out_pull * lengths[:, None]
        return cost_spread(redrawn_costs(pull, lengths, cost, self.options.seed + 1))

    def expected(self, share: NDArray[np.float64], cost: NDArray[np.float64]) -> float:
        """Copies per token when requests start at `share`."""
        return float(np.average((share * cost).sum(axis=1), weights=self.requests.lengths))

    def costs_of_copies(self, copies: list[Copies]) -> NDArray[np.float64]:
        """As `cost_per_token`, by the `cover` rule."""
        return self.cost_per_token(lambda layer: copies_by_home(self.problems[layer], copies[layer]))

    def plain_costs(self, places: list[NDArray[np.int32]]) -> NDArray[np.float64]:
        """As `cost_per_token`, one copy of each expert."""
        return self.cost_per_token(lambda layer: self.problems[layer].copies_by_home(places[layer]))
