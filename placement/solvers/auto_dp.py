"""`auto` under `dp`: a request keeps one home in all layers, so layers are solved together through the homes.

Placements and homes alternate from several clusterings of the requests. The homes that a placement is made for are then
those that the contract's rule gives to requests which the affinity was not fitted to, so that the plan is the best one
for new requests and not for those of the profile.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from specmoe.placement.homes import dp_homes
from specmoe.placement.options import SolveOptions
from specmoe.placement.plan import PlacementPlan
from specmoe.placement.solvers.affinity import Affinity, AffinityModel, affinity_tensor
from specmoe.placement.solvers.assemble import assemble
from specmoe.placement.solvers.assignment_rule import simulated_shares
from specmoe.placement.solvers.auto_tp import vocabulary_size
from specmoe.placement.solvers.cooling import cooling
from specmoe.placement.solvers.copies import Copies, set_copies
from specmoe.placement.solvers.cost_spread import cost_spread, redrawn_costs
from specmoe.placement.solvers.effort import affordable_starts, searched_tokens
from specmoe.placement.solvers.finish_layer import finish_layer
from specmoe.placement.solvers.layer_problem import LayerProblem, Machine
from specmoe.placement.solvers.load_drift import Redraws, expected_heaviest
from specmoe.placement.solvers.margins import Margins, Trial, best_trial, ceiling_of, under_margin
from specmoe.placement.solvers.replicated_layer import (
    ANNEALING_ROUNDS,
    anneal_rounds,
    copies_by_home,
    fill_slots,
    holds_of,
    settle,
)
from specmoe.placement.solvers.request_clusters import clustered_homes, even_homes, request_features
from specmoe.placement.solvers.requests import Requests
from specmoe.placement.solvers.row_sums import sum_over_tokens
from specmoe.placement.solvers.swap_search import OVERLOAD_PRICES
from specmoe.placement.topology import Topology
from specmoe.profiler.routing_profile import RoutingProfile

Result = TypeVar("Result")
Places = list[NDArray[np.int32]]

_STARTS = 5
# Annealing begins hot, so it needs no more than a fair start.
_STARTS_WITH_REPLICAS = 1
# The part of a time limit for placements to begin with, where annealing follows.
_STARTS_TIME = 0.3
_RESTARTS = (4, 2, 2, 2)
_SERVED_ALTERNATIONS = 3
_PATIENCE = 40
_HOME_ROUNDS, _FEWEST_HOME_ROUNDS = 10, 3
# They become fewer only from twice as many slots on.
_HOME_ROUNDS_THIN_OUT = 2
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

    def place(self, share: NDArray[np.float64], places: Places | None, restarts: int, seed: int) -> Places:
        """Every layer's best placement for homes `share`, from `places` on and from `restarts` random ones."""

        def work(layer: int) -> NDArray[np.int32]:
            problem, homes = self.searched[layer], self.homes_of_set(layer, share)
            rng = np.random.default_rng((self.options.seed, seed, layer))
            starts = [] if places is None else [places[layer]]
            starts += [problem.random_placement(rng) for _ in range(restarts)]
            found: list[NDArray[np.int32]] = []
            for start in starts:
                if self.options.is_over and (found or places is not None):
                    found.append(start)
                    break
                found.append(problem.search(homes, start, patience=_PATIENCE, seed=seed))
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
        orders = max(_FEWEST_ORDERS, affordable_starts(_ORDERS, int(self.machine.slots.sum())))
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


def auto_dp(profile: RoutingProfile, topology: Topology, options: SolveOptions, margins: Margins) -> PlacementPlan:
    """The best plan found; `margins`: the parts of the allowed imbalance that its layers may try on the profile."""
    machine = Machine.of(topology, options, profile.num_logical_experts, ceiling_of(margins[0], options.max_imbalance))
    search = DpSearch(profile, machine, options)
    search, places = _best_start(search, margins)
    share, affinity = search.served_homes(search.plain_costs(places))
    copies = search.each_layer(
        lambda layer: fill_slots(
            search.searched[layer], holds_of(search.searched[layer], places[layer]), search.homes_of_set(layer, share)
        )
    )
    if int(machine.slots.sum()) > profile.num_logical_experts:
        _anneal(search, copies, share)
    cost = search.costs_of_copies(copies)
    share, affinity = search.judged_homes(cost)
    expected, spread = search.expected(share, cost), search.spread(affinity, cost)
    sample, choice = profile.require_sample("solving for request homes"), options.replica_choice or "cover"
    table = None if affinity is None else affinity_tensor(affinity, search.requests, vocabulary_size(profile))
    homes = dp_homes(sample.request_ids, sample.token_ids, table, sample.num_tokens, topology.ep_size)
    layers = search.each_layer(
        lambda layer: finish_layer(search.problems[layer], copies[layer], homes, choice, options.seed + layer)
    )
    tables = {} if table is None else {"token_affinity": table}
    return assemble(profile, topology, options, layers, method="auto", expected=expected, spread=spread, **tables)


def _best_start(search: DpSearch, margins: Margins) -> tuple[DpSearch, Places]:
    """The placements, alternated to the end, of the clustering that serves new requests best, and their search."""
    sample = search.profile.require_sample("clustering requests")
    features = request_features(sample, search.requests, search.profile.num_logical_experts)
    found: list[tuple[float, DpSearch, Places]] = []
    slots = int(search.machine.slots.sum())
    has_replicas = slots > search.profile.num_logical_experts
    starts = max(1, affordable_starts(_STARTS_WITH_REPLICAS if has_replicas else _STARTS, slots))
    starting = search.options.ending_after(_STARTS_TIME if has_replicas else 1.0)
    for start in range(starts):
        if found and search.options.is_over:
            break
        own, seed = copy(search), search.options.seed + start
        own.options = starting
        placed = _clustered(own, features, seed)
        placed = own.choose_margins(own.served_homes(own.plain_costs(placed))[0], placed, margins)
        placed = _alternated(own, placed)
        cost = own.plain_costs(placed)
        found.append((own.expected(own.served_homes(cost)[0], cost), own, placed))
        search.options.report("starts", start + 1, starts, min(value for value, _, _ in found))
    _, best, places = min(found, key=lambda run: run[0])
    best.options = search.options
    return best, places


def _clustered(search: DpSearch, features: NDArray[np.float64], seed: int) -> Places:
    """Placements for one clustering of the requests, whose homes then follow the placements."""
    slots = int(search.machine.slots.sum())
    share = clustered_homes(features, search.requests.lengths, search.machine.ep_size, seed)
    placed: Places | None = None
    for turn, restarts in enumerate(_RESTARTS):
        if placed is not None and search.options.is_over:
            break
        afresh = affordable_starts(restarts, slots)
        placed = search.place(share, placed, afresh if placed else max(1, afresh), seed + turn)
        share = even_homes(search.plain_costs(placed), search.requests.lengths)
    assert placed is not None
    return placed


def _alternated(search: DpSearch, places: Places) -> Places:
    """Placements for homes that new requests can be sent to, half way between those and the best ones."""
    for turn in range(_SERVED_ALTERNATIONS):
        if search.options.is_over:
            break
        cost = search.plain_costs(places)
        wanted = even_homes(cost, search.requests.lengths)
        places = search.place(0.5 * search.served_homes(cost)[0] + 0.5 * wanted, places, 0, turn)
    return places


def _anneal(search: DpSearch, copies: list[Copies], share: NDArray[np.float64]) -> None:
    """Better all layers' copies in place, from homes `share` on."""
    options, slots = search.options, int(search.machine.slots.sum())
    filled, annealed_for = [one.holds.copy() for one in copies], share

    def anneal(layer: int) -> NDArray[np.float32]:
        if not options.is_over:
            problem, homes = search.searched[layer], search.homes_of_set(layer, share)
            anneal_rounds(problem, copies[layer], homes, turns.tolist(), options.seed + layer)
        return copies_by_home(search.problems[layer], copies[layer])

    def settle_layer(layer: int) -> None:
        problem, homes, seed = search.searched[layer], search.homes_of_set(layer, annealed_for), options.seed + layer
        settle(problem, copies[layer], homes, seed, ceiling=problem.cap.ceiling, overload_price=OVERLOAD_PRICES[0])

    home_rounds, done = max(_FEWEST_HOME_ROUNDS, affordable_starts(_HOME_ROUNDS, slots // _HOME_ROUNDS_THIN_OUT)), 0
    for turns in cooling(ANNEALING_ROUNDS, home_rounds, lambda: options.seconds_left):
        if options.is_over:
            break
        cost, annealed_for = search.cost_per_token(anneal), share
        share = search.served_homes(cost)[0]
        done += len(turns)
        options.report("replicas", done, max(done, ANNEALING_ROUNDS), search.expected(share, cost))
    if options.is_over:
        _keep_better(search, copies, filled)
    else:
        search.each_layer(settle_layer)


def _keep_better(search: DpSearch, copies: list[Copies], before: list[NDArray[np.uint8]]) -> None:
    """Take the copies `before`, uint8 [R, E], where annealing that was cut short has not found better ones yet."""
    now, expected = [one.holds.copy() for one in copies], []
    for holds in (now, before):
        for one, held in zip(copies, holds, strict=True):
            set_copies(one, held)
        cost = search.costs_of_copies(copies)
        expected.append(search.expected(search.served_homes(cost)[0], cost))
    if expected[0] <= expected[1]:
        for one, held in zip(copies, now, strict=True):
            set_copies(one, held)
